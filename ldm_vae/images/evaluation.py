"""Images in the collection's own order, without randomness: to validate, measure, encode and evaluate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm_vae.images.bands import range_of
from ldm_vae.images.buckets import nearest_bucket
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.guard import SkippedImage, UnreadableImage
from ldm_vae.images.transforms import Box, Size, crop_box, middle_box, to_tensor
from ldm_vae.system.pixels import PICTURES, Span, chosen_channels
from ldm_vae.system.workers import load


@dataclass(kw_only=True)
class EvaluationSample:
    """Image `index` of a collection, or why there is none."""

    index: int
    image: Tensor | None  # [C, H, W], float32 in [-1, 1]
    name: str
    skipped: SkippedImage | None


@dataclass(kw_only=True)
class EvaluationBatch:
    """The readable ones of a batch of images, and why the others aren't."""

    indices: list[int]
    """Numbers of the rows of `images` in the collection."""
    images: Tensor | None  # [n, C, H, W], float32 in [-1, 1], channels_last; None where none can be read
    names: list[str]
    """What the rows of `images` are called."""
    skipped: list[SkippedImage]

    def pin_memory(self) -> EvaluationBatch:
        """Return the batch in page-locked memory (called by the loader)."""
        images = None if self.images is None else self.images.pin_memory()
        return EvaluationBatch(indices=self.indices, images=images, names=self.names, skipped=self.skipped)


class NamedCollection(Protocol):
    """What samples are made of, by number."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What to call item i."""
        ...


class EvaluationSamples(Dataset, ABC):
    """Samples by their number in a collection.

    Args:
        collection: What they are made of.
        resolution: The side that all of them have, in pixels; None: there is none.
        sizes: Where `resolution` is None, (width, height) of the shapes that they have; none: any.
        target_channels: Channels that a reconstruction has, in its order; none: all.
    """

    noun: ClassVar[str] = "image"
    """What messages call each of them."""
    span: Span = PICTURES
    """The values of black and white."""

    def __init__(
        self,
        collection: NamedCollection,
        *,
        resolution: int | None,
        sizes: Sequence[Size] = (),
        target_channels: Sequence[int] = (),
    ) -> None:
        self._items = collection
        self.resolution = resolution
        self.sizes = tuple(sizes)
        self.target_channels = tuple(target_channels)

    @property
    def value_range(self) -> list[float]:
        """The declared range of the images' numbers; empty where they are pictures of 8 bits."""
        return []

    @property
    def target_range(self) -> list[float]:
        """The declared range of what reconstructions are compared with."""
        return range_of(self.value_range, self.target_channels)

    def targets(self, images: Tensor) -> Tensor:
        """Return of images, [..., C, H, W], the channels that reconstructions are compared with."""
        return chosen_channels(images, self.target_channels)

    @property
    def has_one_shape(self) -> bool:
        """Whether all images have one shape, so that several make a batch."""
        return self.resolution is not None or len(self.sizes) == 1

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> EvaluationSample:
        """Return sample `index`; an unreadable one has no image."""
        try:
            image = self._read(index)
        except UnreadableImage as error:
            skipped = SkippedImage(index=index, name=error.name, reason=error.reason)
            return EvaluationSample(index=index, image=None, name=error.name, skipped=skipped)
        return EvaluationSample(index=index, image=image, name=self._items.name(index), skipped=None)

    @abstractmethod
    def _read(self, index: int) -> Tensor:
        """Return sample `index`, [C, H, W]; raise `UnreadableImage` where it can't be read."""


class EvaluationImages(EvaluationSamples):
    """A collection's images by number.

    Args:
        collection: The images.
        channels: Channels that the images have.
        resolution: The short side is resized to so many pixels and the middle is cropped to a square; None: the whole
            picture, cut around its middle to a multiple of `multiple_of` pixels a side.
        multiple_of: The model's spatial factor.
        sizes: Where `resolution` is None, (width, height) of the shapes of which each picture gets the nearest, cut
            about its middle; none: whole pictures.
        target_channels: Channels that a reconstruction has, in its order; none: all.
    """

    def __init__(
        self,
        collection: ImageCollection,
        *,
        channels: int,
        resolution: int | None,
        multiple_of: int = 1,
        sizes: Sequence[Size] = (),
        target_channels: Sequence[int] = (),
    ) -> None:
        super().__init__(collection, resolution=resolution, sizes=sizes, target_channels=target_channels)
        self._collection = collection
        self._channels = channels
        self._multiple_of = multiple_of

    @property
    def value_range(self) -> list[float]:
        """The declared range of the images' numbers; empty where they are pictures of 8 bits."""
        return self._collection.rules.value_range

    def _read(self, index: int) -> Tensor:
        shape, factor = self.resolution or self._nearest(index), self._multiple_of
        if shape is not None:

            def box_of(size: Size) -> Box:
                return crop_box(size, resolution=shape, crop="center")

            picture = self._collection.read_crop(index, channels=self._channels, resolution=shape, box_of=box_of)
            return to_tensor(picture)
        picture = self._collection.read(index, channels=self._channels)
        width, height = (side // factor * factor for side in picture.size)
        if width == 0 or height == 0:
            size = f"{picture.width}x{picture.height}"
            raise UnreadableImage(
                self._collection.name(index), f"its {size} pixels are fewer than the model's factor {factor} a side"
            )
        return to_tensor(picture.crop(middle_box(picture.size, cut=(width, height))))

    def _nearest(self, index: int) -> Size | None:
        """Return the shape that image `index` gets, if there are shapes."""
        if len(self.sizes) < 2:
            return self.sizes[0] if self.sizes else None
        return nearest_bucket(self._collection.size(index, channels=self._channels), sizes=self.sizes)


def spread_indices(num_available: int, *, num_images: int | None) -> list[int]:
    """Return at most `num_images` indices, spread evenly over those available."""
    count = num_available if num_images is None else min(num_images, num_available)
    return [i * num_available // count for i in range(count)]


def evaluation_batches(
    dataset: EvaluationSamples,
    *,
    indices: Sequence[int],
    batch_size: int,
    num_workers: int = 0,
    timeout_seconds: float = 600,
    pin_memory: bool = False,
) -> Iterator[EvaluationBatch]:
    """Yield the images `indices` in this order, `batch_size` at a time; those of several shapes come one at a time.

    Raises:
        DataWorkerError: A worker died, or gave nothing for `timeout_seconds`.
    """
    size = batch_size if dataset.has_one_shape else 1
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    return load(
        dataset,
        collate=collate_evaluation,
        batch_sampler=batches,
        num_workers=min(num_workers, len(batches)),
        timeout_seconds=timeout_seconds,
        pin_memory=pin_memory,
    )


def collate_evaluation(samples: list[EvaluationSample]) -> EvaluationBatch:
    """Stack the readable samples into a batch."""
    images = [sample.image for sample in samples if sample.image is not None]
    readable = [sample for sample in samples if sample.image is not None]
    return EvaluationBatch(
        indices=[sample.index for sample in readable],
        images=torch.stack(images).contiguous(memory_format=torch.channels_last) if images else None,
        names=[sample.name for sample in readable],
        skipped=[sample.skipped for sample in samples if sample.skipped is not None],
    )


def evaluation_batch(samples: EvaluationSamples, indices: Sequence[int]) -> EvaluationBatch:
    """Return a batch of images by their numbers: what a cluster's tasks do, whose processes import no autoencoder."""
    return collate_evaluation([samples[index] for index in indices])
