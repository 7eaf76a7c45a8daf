"""Latents that are known of an autoencoder: a folder that `encode` wrote, pictures encoded now, or a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_vae.config.commands.explore import ExploreSampleOptions
from ldm_vae.config.rules import require
from ldm_vae.exploring.batches import PictureBatches
from ldm_vae.exploring.codec import Codec
from ldm_vae.images.guard import SkippedImage
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.probing.latents import EncodedMoments, FolderMoments, Moments, moment_files
from ldm_vae.system.telling import counted

_ROWS = 256  # that are read at once
_NAME = "latents"


@dataclass(frozen=True, kw_only=True)
class KnownLatents:
    """Posteriors of one shape, by row."""

    moments: Moments
    source: str
    """What they are, for the user."""
    has_spread: bool = True
    """Whether the posteriors' spread is known: they have deviations, or are samples."""
    skipped: tuple[SkippedImage, ...] = ()
    """Pictures that couldn't be read."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a latent: c, h, w."""
        return self.moments.shape

    def __len__(self) -> int:
        return len(self.moments)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the rows in order: means and standard deviations, each [n, c, h, w], float32 on the CPU."""
        for start in range(0, len(self), _ROWS):
            yield self.moments.read(range(start, min(start + _ROWS, len(self))))


def check_encoder(dataset: LatentDataset, codec: Codec, *, vae: str, hint: str = "") -> None:
    """Raise unless a folder's latents are the autoencoder's own.

    Raises:
        FieldError: They are another's; `hint` says what to do.
    """
    require(
        codec.fingerprint.encoder == dataset.index["vae"]["encoder"],
        f"<latents> {dataset.directory} was encoded by another autoencoder than <vae> {vae}{hint}",
    )


def folder_latents(folder: str | Path, codec: Codec, *, vae: str) -> KnownLatents:
    """Open a folder of latents of one shape.

    Raises:
        FieldError: It holds none, those of several shapes, or another autoencoder's.
    """
    dataset = LatentDataset(folder, normalize="none")
    require(len(dataset) > 0, f"<latents> {folder} holds no latents")
    check_encoder(dataset, codec, vae=vae)
    shapes = {dataset.shape(rows.start) for rows in dataset.shard_rows() if len(rows)}
    require(
        len(shapes) == 1,
        f"<latents> {folder} holds latents of {len(shapes)} shapes; encode at one resolution, without buckets",
    )
    return KnownLatents(
        moments=FolderMoments(str(folder)),
        source=f"{counted(len(dataset), 'latent')} of {folder}",
        has_spread=dataset.index["mode"] in ("moments", "sample"),
    )


def tensor_latents(latents: Tensor) -> KnownLatents:
    """Take latents [n, c, h, w] as they are, without deviations."""
    require(latents.ndim == 4 and len(latents) > 0, f"latents have the shape {list(latents.shape)}; give [n, c, h, w]")
    mean = latents.detach().float().cpu().numpy()
    moments = EncodedMoments(mean=mean, std=np.zeros_like(mean), rows=np.arange(len(mean)))
    return KnownLatents(moments=moments, source=counted(len(mean), "latent"), has_spread=False)


def encoded_latents(options: ExploreSampleOptions, codec: Codec, *, resolution: int, work: Path) -> KnownLatents:
    """Encode the pictures of `data` into files in the folder `work`.

    Raises:
        FieldError: None of them can be read or, where `strict`, one can't.
    """
    pictures = PictureBatches(options, codec, resolution=resolution)
    side = resolution // codec.family.spatial_factor
    shape = (len(pictures), codec.family.latent_channels, side, side)
    files = [
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for path in moment_files(work, name=_NAME)
    ]
    places = {index: place for place, index in enumerate(pictures.indices)}
    rows: list[int] = []
    for batch, images in pictures:
        mean, std = codec.encode(images)
        at = [places[index] for index in batch.indices]
        for file, values in zip(files, (mean, torch.zeros_like(mean) if std is None else std), strict=True):
            file[at] = values.cpu().numpy()
        rows += at
    for file in files:
        file.flush()
    return KnownLatents(
        moments=EncodedMoments.open(work, name=_NAME, rows=rows),
        source=f"{counted(len(rows), 'latent')} of {options.data} at {resolution} pixels",
        skipped=tuple(pictures.skipped),
    )
