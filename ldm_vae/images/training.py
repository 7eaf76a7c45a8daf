"""Training images: the k-th of the run, and batches of them from any step on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm_vae.config.names import Crop
from ldm_vae.images.bands import Picture
from ldm_vae.images.buckets import Buckets
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.draws import DrawRules
from ldm_vae.images.guard import SkippedImage, UnreadableImage
from ldm_vae.images.transforms import Box, Size, crop_box, mirrored, to_tensor
from ldm_vae.system.pixels import PICTURES, Span
from ldm_vae.system.randomness import sample_index, sample_rng


@dataclass(kw_only=True)
class TrainingSample:
    """The k-th image of a run."""

    image: Tensor  # [C, H, W], float32 in [-1, 1]
    noise: Tensor  # [c, h, w], float32, standard normal: the posterior's
    skipped: list[SkippedImage]
    """Images that were tried before and could not be read."""
    draws: dict[str, Tensor] = field(default_factory=dict)
    """The image's draws for interventions, by name."""
    step_draws: dict[str, float] = field(default_factory=dict)
    """Those of its update, by name."""
    stored: dict[str, Tensor] = field(default_factory=dict)
    """The image's latents that were stored before, where there are any: `mean` and perhaps `std`, [c, h, w]."""


@dataclass(kw_only=True)
class TrainingBatch:
    """A micro-batch."""

    images: Tensor  # [b, C, H, W], float32 in [-1, 1], channels_last
    noise: Tensor  # [b, c, h, w], float32, standard normal
    skipped: list[SkippedImage]
    draws: dict[str, Tensor | float] = field(default_factory=dict)
    """What was drawn beside the noise for interventions, by name: tensors with a row an image, and numbers, which
    decide on shapes."""
    stored: dict[str, Tensor] = field(default_factory=dict)
    """Latents that were stored before, where there are any: `mean` and perhaps `std`, [b, c, h, w]."""

    def pin_memory(self) -> TrainingBatch:
        """Return the batch in page-locked memory (called by the loader)."""
        return self._mapped(Tensor.pin_memory)

    def to(self, device: torch.device) -> TrainingBatch:
        """Return the batch on a device, without waiting, images and noise in channels_last.

        The memory layout is changed on the device: changed before, the copy would leave page-locked memory and wait.
        """
        moved = self._mapped(lambda tensor: tensor.to(device, non_blocking=True))
        moved.images = moved.images.contiguous(memory_format=torch.channels_last)
        moved.noise = moved.noise.contiguous(memory_format=torch.channels_last)
        return moved

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> TrainingBatch:
        return TrainingBatch(
            images=change(self.images),
            noise=change(self.noise),
            skipped=self.skipped,
            draws={name: change(drawn) if isinstance(drawn, Tensor) else drawn for name, drawn in self.draws.items()},
            stored={name: change(tensor) for name, tensor in self.stored.items()},
        )


def grey_batch(
    size: int, *, shape: tuple[int, int, int], latent_shape: tuple[int, int, int], rules: DrawRules
) -> TrainingBatch:
    """Return `size` grey images of [C, H, W], zero for noise and latents, and all that an update may draw."""
    sample = rules.of_image(0, latent_shape=latent_shape)
    draws: dict[str, Tensor | float] = {name: torch.stack([drawn] * size) for name, drawn in sample.items()}
    noise = torch.zeros(size, *latent_shape)
    return TrainingBatch(
        images=torch.zeros(size, *shape),
        noise=noise,
        skipped=[],
        draws={**draws, **rules.rehearsed()[0]},
        stored={"mean": noise, "std": noise},
    )


@dataclass(kw_only=True, frozen=True)
class Augmentation:
    """How a picture becomes a training image: a function of (seed, k) and the picture alone."""

    seed: int
    channels: int
    """Channels of the images."""
    resolution: int
    """Side of the square images, in pixels."""
    early: Sequence[tuple[int, int]] = ()
    """(k, smaller resolution): what the images before the k-th have instead, by ascending k."""
    crop: Crop = "random"
    """See `crop_box`."""
    min_area: float = 0.25
    """See `crop_box`."""
    flip: bool = True
    """Whether half of the images are mirrored."""
    latent_channels: int
    """Channels of the posterior noise."""
    spatial_factor: int
    """Pixels of an image along one side of a pixel of the noise."""
    buckets: Buckets | None = None
    """Shapes that images have in place of squares of `resolution`."""
    draws: DrawRules | None = None
    """What is drawn beside crop, flip and noise; None: nothing."""
    strict: bool = False
    """Whether an image that can't be read is an error, instead of being replaced."""

    def size_of(self, k: int) -> Size:
        """Return the k-th image's (width, height), in pixels."""
        if self.buckets is not None:
            return self.buckets.size_of(k)
        side = next((resolution for end, resolution in self.early if k < end), self.resolution)
        return side, side

    def box_of(self, k: int) -> Callable[[tuple[int, int]], Box]:
        """Return the function that gives the k-th image's crop from its size."""

        def box(size: tuple[int, int]) -> Box:
            rng = sample_rng(k, seed=self.seed, stream="crop")
            return crop_box(size, resolution=self.size_of(k), crop=self.crop, min_area=self.min_area, rng=rng)

        return box

    def flips(self, k: int) -> bool:
        """Return whether the k-th image is mirrored."""
        return self.flip and bool(sample_rng(k, seed=self.seed, stream="flip").random() < 0.5)

    def sample(self, k: int, picture: Picture, skipped: list[SkippedImage]) -> TrainingSample:
        """Return the k-th sample from its crop: flipped or not, and with its noise."""
        return self.sample_of(k, to_tensor(mirrored(picture) if self.flips(k) else picture), skipped)

    def sample_of(self, k: int, image: Tensor, skipped: list[SkippedImage]) -> TrainingSample:
        """Return the k-th sample from the image [C, H, W] itself, with its noise and draws."""
        shape = (self.latent_channels, *(side // self.spatial_factor for side in image.shape[-2:]))
        noise = sample_rng(k, seed=self.seed, stream="noise").standard_normal(shape, dtype=np.float32)
        sample = TrainingSample(image=image, noise=torch.from_numpy(noise), skipped=skipped)
        if self.draws is not None:
            sample.draws = self.draws.of_image(k, latent_shape=shape)
            sample.step_draws = self.draws.of_step(k // self.draws.batch_size)
        return sample


class Collection(Protocol):
    """What samples are made of, by number."""

    def __len__(self) -> int: ...

    def data_names(self) -> Iterator[str]:
        """Yield what tells this collection from another, in its order."""
        ...


class TrainingSamples(Dataset, ABC):
    """The run's samples by their number k, without end: item k depends on (seed, k) and the collection alone.

    Where the one that is due can't be read, the next readable one of the collection, or of its bucket, takes its
    place, with k's crop, flip and noise.

    Args:
        collection: What they are made of.
        augmentation: How.
    """

    span: Span = PICTURES
    """The values of black and white."""

    def __init__(self, collection: Collection, augmentation: Augmentation) -> None:
        self._items = collection
        self.augmentation = augmentation

    def data_names(self) -> Iterator[str]:
        """Yield what tells this collection from another: see `ImageCollection.data_names`, and its buckets."""
        yield from self._items.data_names()
        if self.augmentation.buckets is not None:
            yield f"buckets of the images, {self.augmentation.buckets.digest()}"

    @property
    def first_of_full_size(self) -> int:
        """Number of the first image that has `resolution`."""
        return max((end for end, _ in self.augmentation.early), default=0)

    def __getitem__(self, k: int) -> TrainingSample:
        """Return the k-th sample of the run.

        Raises:
            UnreadableImage: It can't be read, and the augmentation is strict.
            ValueError: Nothing of the collection can be read.
        """
        augmentation = self.augmentation
        due = None if augmentation.buckets is None else augmentation.buckets.due(k)
        items, place = due or (range(len(self._items)), k)
        first = sample_index(place, num_samples=len(items), seed=augmentation.seed)
        skipped: list[SkippedImage] = []
        for offset in range(len(items)):
            index = int(items[(first + offset) % len(items)])
            try:
                return self._sample(k, index, skipped)
            except UnreadableImage as error:
                if augmentation.strict:
                    raise
                skipped.append(SkippedImage(index=index, name=error.name, reason=error.reason))
        raise ValueError(
            f"none of the {len(items)} training images can be read; the first: {skipped[0].name}: {skipped[0].reason}"
        )

    @abstractmethod
    def _sample(self, k: int, index: int, skipped: list[SkippedImage]) -> TrainingSample:
        """Make the k-th sample of item `index` of the collection, after those that were `skipped`."""


class TrainingImages(TrainingSamples):
    """Training samples of a collection of images.

    Args:
        collection: The images.
        augmentation: How they become training images.
    """

    def __init__(self, collection: ImageCollection, augmentation: Augmentation) -> None:
        super().__init__(collection, augmentation)
        self._collection = collection

    def _sample(self, k: int, index: int, skipped: list[SkippedImage]) -> TrainingSample:
        augmentation = self.augmentation
        picture = self._collection.read_crop(
            index,
            channels=augmentation.channels,
            resolution=augmentation.size_of(k),
            box_of=augmentation.box_of(k),
        )
        return augmentation.sample(k, picture, skipped)
