"""`ldm-vae decode`: shards of latents to pictures, or to arrays or sounds where the latents are of such."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ldm_vae.config.commands.decode import DecodeOptions
from ldm_vae.config.rules import require
from ldm_vae.encoding.decoded_form import DecodedForm, decoded_form
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.sealed import dump_json
from ldm_vae.latents.shards import SKIPPED
from ldm_vae.models.families.family import Family
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.inference import InferenceAutoencoder, local_device
from ldm_vae.models.load import load_vae
from ldm_vae.models.normalisation import Normalisation
from ldm_vae.models.precision import use_bf16
from ldm_vae.system.output_kinds import DECODED
from ldm_vae.system.output_stores import is_marked_store, output_at
from ldm_vae.system.paths import LONGEST_NAME
from ldm_vae.system.places import open_store
from ldm_vae.system.progress import progress
from ldm_vae.system.store import Store
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

PICTURES = DECODED.mark
_WRITING_THREADS = 4
_UNWRITTEN = 64
_LONGEST_PATH = 1000
"""Bytes of a picture's path within the folder; systems take 1024 or 4096 for a whole path."""


@dataclass(kw_only=True)
class DecodeSummary:
    """What was decoded."""

    output: str
    """Path or address."""
    num_images: int
    """Files that were written."""
    kind: str = "picture"
    """What each of them is."""
    skipped: list[str] = field(default_factory=list)
    """Sources of the latents that decode to no finite numbers, of which no pictures were written."""

    def __str__(self) -> str:
        return f"{self.output}: {counted(self.num_images, self.kind)}, named in {PICTURES}"

    @property
    def problem(self) -> str | None:
        """What didn't go well, in one line; None where all did."""
        if not self.skipped:
            return None
        return (
            f"{len(self.skipped):,} of {self.num_images + len(self.skipped):,} latents decode to no finite numbers "
            f"and were left out; they are listed in {self.output}/{SKIPPED}, the first: {printable(self.skipped[0])}. "
            f"Are the decoder's weights whole? Try --mixed_precision no"
        )


def decode(options: DecodeOptions) -> DecodeSummary:
    """Decode latents as they are stored, the mean where they are moments, and write a picture a row.

    Stored latents are the VAE's own, not scaled for diffusion, so nothing is undone before they are decoded; a decoder
    that was distilled alone takes them as its teacher's pipelines normalise them. A picture is called as its source
    is; where several sources would give one name, by their numbers in the collection. Where the decoder gives values
    that are no finite numbers, no picture is written; such latents are listed in skipped.jsonl, and the summary says
    that not all went well.

    Raises:
        ValueError: In one line, naming the option, for what a user can mend.
    """
    output = output_at(options.output, kind=DECODED)
    output.check(overwrite=options.overwrite)
    dataset = LatentDataset(options.latents, normalize="none")
    family = load_vae(options.vae, needs_scaling=False, needs_encoder=False, **options.vae_arguments).family
    _check_fits(options, dataset, family)
    count = len(dataset) if options.num_images is None else min(options.num_images, len(dataset))
    form = decoded_form(options, dataset, channels=family.out_channels)
    entries = [entry for entry, _ in zip(dataset.rows(), range(count), strict=False)]
    names = picture_names(entries, suffix=form.suffix)
    store = open_store(options.output)
    output.begin(names, mark=_listing(dataset, names), listed=_listed(store))
    bf16 = use_bf16(options.mixed_precision, device=local_device())
    decoder = InferenceAutoencoder(family, bf16=bf16, memory_gib=options.memory_gib)
    skipped = _write_all(
        dataset,
        names,
        to_own=_to_own(dataset, family),
        decoder=decoder,
        form=form,
        store=store,
        batch_size=options.batch_size,
    )
    sources = [dataset.row(row)["source"] for row in skipped]
    if skipped:
        reason = "it decodes to no finite numbers"
        lines = [
            {"row": row, "source": source, "reason": reason} for row, source in zip(skipped, sources, strict=True)
        ]
        store.write_whole(SKIPPED, b"".join(dump_json(line) for line in lines))
    place = store.place().rstrip("/")
    return DecodeSummary(output=place, num_images=count - len(skipped), kind=form.kind, skipped=sources)


def _check_fits(options: DecodeOptions, dataset: LatentDataset, family: Family) -> None:
    """Raise `FieldError` unless the autoencoder decodes such latents, and is the one that encoded them."""
    require(
        options.other_vae or fingerprint(family).encoder == dataset.index["vae"]["encoder"],
        f"<vae> {options.vae} is not the autoencoder that {options.latents} was encoded with; "
        f"<other_vae> decodes all the same",
    )
    channels = len(dataset.index["stats"]["mean"]) or family.latent_channels
    require(
        family.latent_channels == channels,
        f"<vae> {options.vae} decodes {family.latent_channels} latent channels, but {options.latents} has {channels}",
    )


def _to_own(dataset: LatentDataset, family: Family) -> Callable[[Tensor], Tensor]:
    """Return what makes the decoder's own latents of stored ones."""
    if family.has_encoder:
        return lambda stored: stored
    teacher = Normalisation.from_config(dataset.index["vae"])
    return partial(teacher.translate, to=family.normalisation)


def _write_all(
    dataset: LatentDataset,
    names: Sequence[str],
    *,
    to_own: Callable[[Tensor], Tensor],
    decoder: InferenceAutoencoder,
    form: DecodedForm,
    store: Store,
    batch_size: int,
) -> list[int]:
    """Decode and write the first rows, as many as there are names; return those that give no finite numbers."""
    skipped: list[int] = []
    unwritten: list[Future[None]] = []
    with ThreadPoolExecutor(_WRITING_THREADS) as threads, progress(len(names), what="decode", unit=form.kind) as bar:
        for rows in _batches(dataset, count=len(names), batch_size=batch_size):
            images = decoder.decode(to_own(torch.stack([dataset[row].latents for row in rows]))).cpu()
            finite = torch.isfinite(images).flatten(1).all(dim=1).tolist()
            skipped += [row for row, is_finite in zip(rows, finite, strict=True) if not is_finite]
            unwritten += [
                threads.submit(form.write, store, names[row], form.prepare(image))
                for row, image, is_finite in zip(rows, images, finite, strict=True)
                if is_finite
            ]
            while len(unwritten) > _UNWRITTEN:
                unwritten.pop(0).result()
            bar.update(len(rows))
        for future in unwritten:
            future.result()
    return skipped


def picture_names(rows: list[dict[str, Any]], *, suffix: str = ".png") -> list[str]:
    """Return a path within the output folder for each row of samples.jsonl: the source's, with another suffix.

    Where sources would share a name, also where a file system tells no case or composition of letters apart, where one
    would be the folder of another, and where a name is longer than file systems take, they get names by their numbers
    in the collection.
    """
    wanted = [str(PurePosixPath(*safe_parts(row["source"])).with_suffix(suffix)) for row in rows]
    keys = [unicodedata.normalize("NFC", name).casefold() for name in wanted]
    counts = Counter(keys)
    folders = {str(parent) for key in keys for parent in PurePosixPath(key).parents}
    names = []
    for row, name, key in zip(rows, wanted, keys, strict=True):
        number = f"sample-{row['sample']:08d}{suffix}"
        taken = counts[key] > 1 or key in folders or _is_too_long(name)
        while taken and number in counts:
            number = f"_{number}"
        names.append(number if taken else name)
    return names


def safe_parts(source: str) -> list[str]:
    """Return the parts of a source's path, none of which leads out of a folder."""
    parts = [part.strip("/\\") for part in re.split(r"[/\\]", source.replace(":", "_").replace("\0", "_"))]
    parts = [part for part in parts if part not in ("", ".", "..")] or ["picture"]
    return [part if part.strip(".") else f"_{part}" for part in parts]


def _is_too_long(name: str) -> bool:
    parts = [len(os.fsencode(part)) for part in name.split("/")]
    return max(parts) > LONGEST_NAME or sum(parts) + len(parts) > _LONGEST_PATH


def _listing(dataset: LatentDataset, names: list[str]) -> bytes:
    """Return the lines of pictures.jsonl."""
    lines = [
        {"picture": name, "row": row, "sample": entry["sample"], "source": entry["source"]}
        for row, (name, entry) in enumerate(zip(names, dataset.rows(), strict=False))
    ]
    return b"".join(dump_json(line) for line in lines)


def _listed(store: Store) -> list[str]:
    """Return the names that an earlier decode into the folder listed."""
    if not is_marked_store(store, DECODED):
        return []
    try:
        return [str(json.loads(line)["picture"]) for line in store.read(PICTURES).splitlines()]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{store.place(PICTURES)} is damaged, so it isn't known which pictures an earlier decode wrote; take "
            f"another folder"
        ) from None


def _batches(dataset: LatentDataset, *, count: int, batch_size: int) -> Iterator[range]:
    """Yield ranges of the first `count` rows, each within a shard, so of one shape."""
    for rows in dataset.shard_rows():
        for start in range(rows.start, min(rows.stop, count), batch_size):
            yield range(start, min(start + batch_size, rows.stop, count))
