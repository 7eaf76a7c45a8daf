"""Images on their way to the encoder: read, cropped and batched in data workers, pictures in 8 bits a channel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm_vae.audio.collection import SoundCollection
from ldm_vae.audio.datasets import middle_mels
from ldm_vae.config.names import DetectChanges
from ldm_vae.encoding.buckets import ImageKey, ShardImages, covering_box
from ldm_vae.images.bands import Bands, Picture
from ldm_vae.images.cells import Stored
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.decoding import read_crop
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.jpegs import JpegCrop, JpegFiles, jpeg_crop
from ldm_vae.images.transforms import Box, Size, crop_box
from ldm_vae.latents.shards import Row
from ldm_vae.system.randomness import sample_rng
from ldm_vae.system.workers import load

WORKER_TIMEOUT_SECONDS = 600.0


@dataclass(kw_only=True)
class EncodingImage:
    """One image, or the row that says why there is none."""

    row: Row
    pixels: Tensor | JpegCrop | None = None
    """[H, W, C], uint8, or float32 in [-1, 1] of numbers in a declared range; or the file that they are to be decoded
    from by the encoder's device."""
    noise: Tensor | None = None  # [c, h, w], float32


@dataclass(kw_only=True)
class ImageBatch:
    """Consecutive images of one shard."""

    rows: list[Row]
    """One row per image of the batch, skipped ones included. Those whose `reason` is None are, in this order, the
    lines of `pixels`, but for those that are in `jpegs`."""
    pixels: Tensor | None  # [n, H, W, C], uint8 or float32 in [-1, 1]; None where there are none
    noise: Tensor | None  # [n, c, h, w], float32, for mode sample
    stem: str = ""
    size: Size = (0, 0)
    """(width, height) that the shard's images have."""
    last: bool = False
    """Whether the batch is the last of its shard."""
    jpegs: JpegFiles | None = None
    """Files that the encoder's device is to decode."""
    num_by_device: int = 0
    """Images whose files it decoded."""

    def pin_memory(self) -> ImageBatch:
        """Return the batch in page-locked memory (called by the loader)."""
        self.pixels = None if self.pixels is None else self.pixels.pin_memory()
        self.noise = None if self.noise is None else self.noise.pin_memory()
        return self


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes what the encoder takes, except for the range of its values."""

    channels: int
    """Channels of the pictures."""
    spatial_factor: int
    """Pixels of the image along one side of a pixel of the latents."""
    noise_channels: int | None
    """Channels of the posterior's noise, for mode sample; None for modes without noise."""
    seed: int
    """Seed of the noise, which is a function of (seed, sample)."""
    crops: int = 1
    """Squares of each picture: sample k has the (k % crops)-th of picture k // crops."""
    leave_jpegs: bool = False
    """Whether JPEG files that any decoder reads as Pillow does are left to the encoder's device."""

    def box(self, picture: Size, *, size: Size, sample: int) -> Box:
        """Return the part of a picture that a sample has, as large as fits the shape of `size`.

        It is about the picture's middle; of several squares the first and the last are at its ends.
        """
        if self.crops > 1:
            before = sample % self.crops, self.crops - 1
            return crop_box(picture, resolution=size[0], crop="center", before=before)
        if size[0] == size[1]:
            return crop_box(picture, resolution=size[0], crop="center")
        return covering_box(picture, size=size)

    def read(self, stored: Stored, *, size: Size, sample: int) -> tuple[Tensor | JpegCrop, Size]:
        """Return a picture's part, or the file that it is in; and the (width, height) of the whole picture.

        Raises:
            UnreadableImage: See `read_crop`.
        """
        seen: list[Size] = []

        def box_of(picture: Size) -> Box:
            seen.append(picture)
            return self.box(picture, size=size, sample=sample)

        if self.leave_jpegs:
            jpeg = jpeg_crop(**stored, channels=self.channels, resolution=size, box_of=box_of)
            if jpeg is not None:
                return jpeg, jpeg.size
        picture = read_crop(**stored, channels=self.channels, resolution=size, box_of=box_of)
        return picture_pixels(picture, channels=self.channels), seen[-1]

    def noise(self, sample: int, *, size: Size) -> Tensor | None:
        """Return the posterior's noise of a sample [c, h, w], if there is any."""
        if self.noise_channels is None:
            return None
        shape = (self.noise_channels, size[1] // self.spatial_factor, size[0] // self.spatial_factor)
        rng = sample_rng(sample, seed=self.seed, stream="latents/sample")
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def picture_pixels(picture: Picture, *, channels: int) -> Tensor:
    """Return a cropped picture as [H, W, C], uint8; numbers in a declared range as float32 in [-1, 1]."""
    stored = picture.values if isinstance(picture, Bands) else np.asarray(picture)
    return torch.from_numpy(stored.reshape(picture.height, picture.width, channels).copy())


class EncodingImages(Dataset):
    """A collection's images by key, each with what is kept of its row."""

    def __init__(
        self,
        collection: ImageCollection | SoundCollection,
        *,
        preprocessing: Preprocessing,
        detect_changes: DetectChanges,
    ) -> None:
        self.collection, self._preprocessing, self._detect_changes = collection, preprocessing, detect_changes

    def __getitem__(self, key: ImageKey) -> EncodingImage:
        image = key.image
        row = Row(
            sample=key.sample,
            image=image,
            source=self.collection.name(image),
            stamp=source_stamp(self.collection, image, detect_changes=self._detect_changes),
            **self._known(image),
        )
        try:
            pixels, original = self._read(key)
        except UnreadableImage as error:
            row.reason = error.reason
            return EncodingImage(row=row)
        row.size = list(original)
        return EncodingImage(row=row, pixels=pixels, noise=self._preprocessing.noise(key.sample, size=key.size))

    def _known(self, image: int) -> dict[str, Any]:
        """Return what the collection says of an image, as fields of its row."""
        assert isinstance(self.collection, ImageCollection)
        columns = self.collection.row(image)
        columns.pop(self.collection.label_column or "", None)
        return {"label": self.collection.label(image), "columns": columns}

    def _read(self, key: ImageKey) -> tuple[Tensor | JpegCrop, Size]:
        """Return an image's pixels [H, W, C] or its file, and the (width, height) of the whole picture."""
        assert isinstance(self.collection, ImageCollection)
        return self._preprocessing.read(self.collection.stored(key.image), size=key.size, sample=key.sample)


class EncodingSounds(EncodingImages):
    """Mels of the middle of a collection's sounds, by key; the size of each says how many frames."""

    def _known(self, image: int) -> dict[str, Any]:
        return {}

    def _read(self, key: ImageKey) -> tuple[Tensor, Size]:
        assert isinstance(self.collection, SoundCollection)
        mels = middle_mels(self.collection, key.image, frames=key.size[1])
        return mels.permute(1, 2, 0), key.size


def encoding_images(
    collection: ImageCollection | SoundCollection, *, preprocessing: Preprocessing, detect_changes: DetectChanges
) -> EncodingImages:
    """Return what reads a collection's images, or the mels of its sounds."""
    kind = EncodingSounds if isinstance(collection, SoundCollection) else EncodingImages
    return kind(collection, preprocessing=preprocessing, detect_changes=detect_changes)


def source_stamp(
    collection: ImageCollection | SoundCollection, image: int, *, detect_changes: DetectChanges
) -> list[int] | str | None:
    """What shows whether an image's source is still the same: size and time of change, digest, or nothing."""
    if detect_changes == "digest":
        return collection.content_digest(image)
    status = collection.source_stat(image) if detect_changes == "mtime" else None
    return None if status is None else list(status)


def shard_batches(
    shards: Iterable[ShardImages], images: EncodingImages, *, batch_size: int, num_workers: int, pin_memory: bool
) -> Iterator[ImageBatch]:
    """Yield the images of shard after shard, at most `batch_size` at a time.

    Batches end with their shard and hold the same images whatever was encoded before, so a shard's bytes don't depend
    on it. `shards` is read ahead by as much as the workers fetch in advance.

    Raises:
        DataWorkerError: A worker died or hung.
    """
    ahead: deque[tuple[str, Size, bool]] = deque()

    def keys() -> Iterator[list[ImageKey]]:
        for shard in shards:
            for start in range(0, len(shard.keys), batch_size):
                ahead.append((shard.stem, shard.size, start + batch_size >= len(shard.keys)))
                yield shard.keys[start : start + batch_size]

    for batch in load(
        images,
        collate=collate,
        batch_sampler=keys(),
        num_workers=num_workers,
        timeout_seconds=WORKER_TIMEOUT_SECONDS,
        pin_memory=pin_memory,
    ):
        batch.stem, batch.size, batch.last = ahead.popleft()
        yield batch


def collate(images: list[EncodingImage]) -> ImageBatch:
    """Stack the readable ones; put the files that aren't decoded yet end to end."""
    readable = [image.pixels for image in images if image.pixels is not None]
    pixels = [image for image in readable if isinstance(image, Tensor)]
    noise = [image.noise for image in images if image.noise is not None]
    return ImageBatch(
        rows=[image.row for image in images],
        pixels=torch.stack(pixels) if pixels else None,
        noise=torch.stack(noise) if noise else None,
        jpegs=JpegFiles.of({place: image for place, image in enumerate(readable) if isinstance(image, JpegCrop)}),
    )


def decoded_batch(images: EncodingImages, keys: list[ImageKey]) -> ImageBatch:
    """Return a batch of images by their keys: what a cluster's tasks do, whose processes import no autoencoder."""
    return collate([images[key] for key in keys])
