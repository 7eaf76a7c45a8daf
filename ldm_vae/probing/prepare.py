"""One pass over the pictures before any training: latents into files, and features of pictures and reconstructions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm_vae.config.rules import FieldError, mark
from ldm_vae.evaluation.features import SetFeatures
from ldm_vae.images.guard import SkippedImage
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.panel.sums import Batch, PanelImages, gather, panel_batches, pixel_digests
from ldm_vae.probing.latents import moment_files
from ldm_vae.system.files import whole_or_absent, write_whole
from ldm_vae.system.launch import join_processes
from ldm_vae.system.tensors import write_tensors

_DONE, _FEATURES = "prepared.json", "features.safetensors"
_REAL = "real"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An autoencoder that is probed."""

    source: str
    """As it was given."""
    name: str
    """What tables call it."""
    fingerprint: str
    """SHA-256 of architecture, scaling and weights."""
    encoder: str
    """SHA-256 of what latents depend on."""
    autoencoder: InferenceAutoencoder
    folder: str | None = None
    """Latents to learn from; None: those of the pictures."""

    @property
    def factor(self) -> int:
        """Image pixels a latent pixel, along one side."""
        return self.autoencoder.family.spatial_factor

    def shape(self, resolution: int) -> tuple[int, int, int]:
        """Return the shape [c, h, w] of a picture's latents."""
        side = resolution // self.factor
        return self.autoencoder.family.latent_channels, side, side


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the pass found."""

    rows: list[int]
    """Pictures that could be read, by their place among those asked for."""
    data: str
    """SHA-256 over the pixels of all of them."""
    skipped: list[SkippedImage]
    features: dict[str, Tensor]
    """[n, d] by `name/real` and `name/0`, the reconstructions of the first autoencoder, and so on."""

    def real(self, features: SetFeatures) -> Tensor:
        """Return the pictures' features [n, d]."""
        return self.features[f"{features.name}/{_REAL}"]

    def reconstructed(self, features: SetFeatures, number: int) -> Tensor:
        """Return the features of an autoencoder's reconstructions, [n, d]."""
        return self.features[f"{features.name}/{number}"]


@torch.no_grad()
def prepare(
    subjects: Sequence[Subject],
    images: PanelImages,
    *,
    compared: set[int],
    features: Sequence[SetFeatures],
    work: Path,
) -> Prepared:
    """Encode the pictures into the folder `work`, or read there that it was done.

    Args:
        subjects: The autoencoders.
        images: Pictures to learn from.
        compared: Those that samples are compared with.
        features: Networks in which they are.
        work: A folder that all processes share.

    Raises:
        ValueError: None of the pictures can be read, or, where `strict`, one of them can't.
    """
    processes = join_processes()
    if not (work / _DONE).is_file():
        if processes.is_main_process:
            for number, subject in enumerate(subjects):
                if subject.folder is not None:
                    continue
                shape = (len(images.indices), *subject.shape(images.dataset.resolution or 0))
                for path in moment_files(work, name=str(number)):
                    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        processes.wait_for_everyone()
        done, rows = _pass(subjects, images, compared=compared, features=features, work=work)
        if processes.is_main_process:
            with whole_or_absent(work / _FEATURES) as temporary:
                write_tensors(temporary, rows)
            write_whole(work / _DONE, json.dumps(done).encode())
        processes.wait_for_everyone()
    done = json.loads((work / _DONE).read_text())
    return Prepared(
        rows=done["rows"],
        data=done["data"],
        skipped=[SkippedImage(**skip) for skip in done["skipped"]],
        features=load_file(work / _FEATURES),
    )


def _pass(
    subjects: Sequence[Subject],
    images: PanelImages,
    *,
    compared: set[int],
    features: Sequence[SetFeatures],
    work: Path,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    places = {index: place for place, index in enumerate(images.indices)}
    files = {
        number: [np.load(path, mmap_mode="r+") for path in moment_files(work, name=str(number))]
        for number, subject in enumerate(subjects)
        if subject.folder is None
    }
    digests: dict[int, bytes] = {}
    skipped: list[SkippedImage] = []
    seen: dict[int, dict[str, Tensor]] = {}
    for batch in panel_batches(images, skipped, title="encode"):
        digests |= pixel_digests(batch)
        chosen = [row for row, index in enumerate(batch.indices) if index in compared]
        pictures = {_REAL: images.dataset.targets(batch.images[chosen])}
        for number, subject in enumerate(subjects):
            mean, std = subject.autoencoder.encode(batch.images)
            if number in files:
                at = [places[index] for index in batch.indices]
                spread = torch.zeros_like(mean) if std is None else std
                for file, values in zip(files[number], (mean, spread), strict=True):
                    file[at] = values.cpu().numpy()
            if chosen and features:
                pictures[str(number)] = subject.autoencoder.decode(mean[chosen]).cpu()
        seen |= {batch.indices[row]: {} for row in chosen}
        _add_features(seen, batch, chosen, pictures, features)
    for arrays in files.values():
        for array in arrays:
            array.flush()
    return _merge(digests, skipped, seen, places)


def _add_features(
    seen: dict[int, dict[str, Tensor]],
    batch: Batch,
    chosen: list[int],
    pictures: dict[str, Tensor],
    features: Sequence[SetFeatures],
) -> None:
    if not chosen:
        return
    device = join_processes().device
    for network in features:
        for name, column in pictures.items():
            for row, values in zip(chosen, network(column.to(device)).cpu(), strict=True):
                seen[batch.indices[row]][f"{network.name}/{name}"] = values.clone()


def _merge(
    digests: dict[int, bytes],
    skipped: list[SkippedImage],
    seen: dict[int, dict[str, Tensor]],
    places: dict[int, int],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for some_digests, some_skipped, some_seen in gather((digests, skipped, seen)):
        digests |= some_digests
        skipped = skipped + [skip for skip in some_skipped if skip not in skipped]
        seen |= some_seen
    if not digests:
        raise FieldError(f"{mark('data')}: no picture can be read")
    done = {
        "rows": sorted(places[index] for index in digests),
        "data": hashlib.sha256(b"".join(digests[index] for index in sorted(digests))).hexdigest(),
        "skipped": [asdict(skip) for skip in sorted(skipped, key=lambda skip: skip.index)],
    }
    order = sorted(seen)
    names = list(seen[order[0]]) if order else []
    return done, {name: torch.stack([seen[index][name] for index in order]) for name in names}
