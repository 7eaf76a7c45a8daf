"""Images on their way to the encoder: read, cropped and batched in data workers, eight bits a channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm_vae.data.collection import ImageCollection
from ldm_vae.data.decoding import UnreadableImage
from ldm_vae.data.loading import load
from ldm_vae.data.order import sample_rng
from ldm_vae.data.shards import Row
from ldm_vae.data.transforms import Box, crop_box

DetectChanges = Literal["mtime", "digest", "off"]


class ImageKey(NamedTuple):
    """One image of a shard."""

    sample: int
    """Its number in the output."""
    image: int
    """Its number in the collection."""


@dataclass(frozen=True, kw_only=True)
class ShardImages:
    """The images of one shard, in order."""

    stem: str
    keys: list[ImageKey]


@dataclass(kw_only=True)
class _Image:
    row: Row
    pixels: Tensor | None  # [H, W, C], uint8
    noise: Tensor | None  # [c, h, w], float32


@dataclass(kw_only=True)
class ImageBatch:
    """Consecutive images of one shard."""

    rows: list[Row]
    """Of all of them; those without a reason are in `pixels`."""
    pixels: Tensor | None  # [n, H, W, C], uint8; None where none can be read
    noise: Tensor | None  # [n, c, h, w], float32, for mode sample
    stem: str = ""
    last: bool = False
    """Whether the shard ends with it."""

    def pin_memory(self) -> ImageBatch:
        """Return the batch in page-locked memory (called by the loader)."""
        self.pixels = None if self.pixels is None else self.pixels.pin_memory()
        self.noise = None if self.noise is None else self.noise.pin_memory()
        return self


class EncodingImages(Dataset):
    """A collection's images by key.

    Args:
        collection: the images.
        channels: 1, 3 or 4.
        resolution: the short side is resized to so many pixels and the middle is cropped to a square.
        latent_shape: [c, h, w] of the posterior's noise; none: no noise.
        seed: of the noise, which is a function of (seed, sample).
        detect_changes: which stamp of its source a row gets.
    """

    def __init__(
        self,
        collection: ImageCollection,
        *,
        channels: int,
        resolution: int,
        latent_shape: tuple[int, int, int] | None,
        seed: int,
        detect_changes: DetectChanges,
    ) -> None:
        self._collection, self._channels, self._resolution = collection, channels, resolution
        self._latent_shape, self._seed, self._detect_changes = latent_shape, seed, detect_changes

    def __getitem__(self, key: ImageKey) -> _Image:
        collection, index = self._collection, key.image
        columns = collection.row(index)
        columns.pop(collection.label_column or "", None)
        row = Row(
            sample=key.sample,
            source=collection.name(index),
            stamp=source_stamp(collection, index, detect_changes=self._detect_changes),
            label=collection.label(index),
            columns=columns,
        )
        try:
            picture = collection.read_crop(
                index, channels=self._channels, resolution=self._resolution, box_of=self._box
            )
        except UnreadableImage as error:
            row.reason = error.reason
            return _Image(row=row, pixels=None, noise=None)
        pixels = np.asarray(picture).reshape(picture.height, picture.width, self._channels)
        return _Image(row=row, pixels=torch.from_numpy(pixels.copy()), noise=self._noise(key.sample))

    def _box(self, size: tuple[int, int]) -> Box:
        return crop_box(size, resolution=self._resolution, crop="center")

    def _noise(self, sample: int) -> Tensor | None:
        if self._latent_shape is None:
            return None
        rng = sample_rng(sample, seed=self._seed, stream="latents/sample")
        return torch.from_numpy(rng.standard_normal(self._latent_shape, dtype=np.float32))


def source_stamp(collection: ImageCollection, index: int, *, detect_changes: DetectChanges) -> list[int] | str | None:
    """What shows whether an image's source is still the same: size and time of change, digest, or nothing."""
    if detect_changes == "digest":
        return collection.content_digest(index)
    status = collection.source_stat(index) if detect_changes == "mtime" else None
    return None if status is None else list(status)


def shard_batches(
    shards: Iterable[ShardImages],
    dataset: EncodingImages,
    *,
    batch_size: int,
    num_workers: int,
    timeout_seconds: float,
    pin_memory: bool,
) -> Iterator[ImageBatch]:
    """Yield the images of shard after shard, at most `batch_size` at a time.

    Batches end with their shard and hold the same images whatever was encoded before, so a shard's bytes don't depend
    on it. `shards` is read ahead by as much as the workers fetch in advance.
    """
    ahead: list[tuple[str, bool]] = []

    def keys() -> Iterator[list[ImageKey]]:
        for shard in shards:
            for start in range(0, len(shard.keys), batch_size):
                ahead.append((shard.stem, start + batch_size >= len(shard.keys)))
                yield shard.keys[start : start + batch_size]

    for batch in load(
        dataset,
        collate=_collate,
        batch_sampler=keys(),
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
        pin_memory=pin_memory,
    ):
        batch.stem, batch.last = ahead.pop(0)
        yield batch


def _collate(images: list[_Image]) -> ImageBatch:
    pixels = [image.pixels for image in images if image.pixels is not None]
    noise = [image.noise for image in images if image.noise is not None]
    return ImageBatch(
        rows=[image.row for image in images],
        pixels=torch.stack(pixels) if pixels else None,
        noise=torch.stack(noise) if noise else None,
    )
