"""What one process reads of the images that are measured; the readers of all processes merge into one.

Under `accelerate launch` or `torchrun` each process takes every P-th image; the results don't depend on P.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ldm_vae.evaluation.features import SetFeatures
from ldm_vae.images.evaluation import EvaluationBatch, EvaluationSamples, evaluation_batches
from ldm_vae.images.guard import SkippedImage
from ldm_vae.metrics.sets import SetDistances, set_distances
from ldm_vae.system.launch import join_processes
from ldm_vae.system.pixels import Span, as_pictures, to_pixels
from ldm_vae.system.progress import progress


@dataclass(frozen=True, kw_only=True)
class MeasuredImages:
    """Which images were measured."""

    num_images: int
    skipped: list[SkippedImage]
    fingerprint: str
    """SHA-256 over the measured images, in order: the pixels of 8 bits, or the numbers of a declared range as float32
    in [-1, 1]. Figures with equal ones are comparable."""


@dataclass(frozen=True, kw_only=True)
class ImagePass:
    """One pass over images: which, and how they are read."""

    dataset: EvaluationSamples
    """Where the images come from, as [C, H, W] in [-1, 1]."""
    indices: Sequence[int]
    """Which images of `dataset`; each process takes its share."""
    batch_size: int
    """Images at once."""
    num_workers: int
    """Decoding processes."""
    strict: bool
    """Whether an unreadable image is an error."""

    @property
    def share(self) -> Sequence[int]:
        """The images that this process takes."""
        processes = join_processes()
        return self.indices[processes.process_index :: processes.num_processes]

    def cut(self) -> list[Sequence[int]]:
        """Return the batches in which one process alone would read all images, by the images' numbers."""
        size = self.batch_size if self.dataset.has_one_shape else 1
        return [self.indices[start : start + size] for start in range(0, len(self.indices), size)]

    def batches(self, *, title: str) -> Iterator[EvaluationBatch]:
        """Yield the batches of this process's share, with a progress bar on the main one."""
        processes = join_processes()
        batches = evaluation_batches(
            self.dataset,
            indices=self.share,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=processes.device.type == "cuda",
        )
        unit, is_main = self.dataset.noun, processes.is_main_process
        with progress(len(self.share), what=title, unit=unit, show=is_main, leave=False) as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch.indices) + len(batch.skipped))


@dataclass(kw_only=True)
class ImageReader:
    """Digests, features and skipped images of one process."""

    strict: bool
    rounded: bool
    """Whether images are pictures of 8 bits."""
    span: Span
    noun: str = "image"
    """What messages call what is read."""
    digests: dict[int, bytes] = field(default_factory=dict)
    features: dict[int, list[Tensor]] = field(default_factory=dict)
    skipped: list[SkippedImage] = field(default_factory=list)

    @staticmethod
    def of(images: ImagePass) -> ImageReader:
        """Return a reader that has read nothing yet."""
        dataset = images.dataset
        return ImageReader(strict=images.strict, rounded=not dataset.value_range, span=dataset.span, noun=dataset.noun)

    @property
    def num_images(self) -> int:
        """Number of images that were read."""
        return len(self.digests)

    def read(self, batch: EvaluationBatch) -> Tensor | None:
        """Return a batch's images [B, C, H, W] in [-1, 1]; None where none of them can be read.

        Raises:
            ValueError: One of them can't, where the pass is strict.
        """
        self.skipped += batch.skipped
        if self.strict and self.skipped:
            raise ValueError(f"the {self.noun} {self.skipped[0].name} can't be read: {self.skipped[0].reason}")
        if batch.images is None:
            return None
        seen = to_pixels(as_pictures(batch.images, self.span)).byte() if self.rounded else batch.images
        for index, pixels in zip(batch.indices, seen, strict=True):
            self.digests[index] = hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()
        return batch.images

    def add_features(self, indices: list[int], columns: list[Tensor]) -> None:
        """Keep features, each [B, d], of a batch's originals and of each autoencoder's reconstructions."""
        for row, index in enumerate(indices):
            # not views, which would be pickled with their whole batch
            self.features[index] = [column[row].clone() for column in columns]

    def take(self, part: ImageReader) -> None:
        """Take in what another process read."""
        self.digests |= part.digests
        self.features |= part.features
        self.skipped += part.skipped

    def summary(self) -> MeasuredImages:
        """Return which images were read."""
        digest = hashlib.sha256(b"".join(self.digests[index] for index in sorted(self.digests)))
        return MeasuredImages(
            num_images=self.num_images,
            skipped=sorted(self.skipped, key=lambda skipped: skipped.index),
            fingerprint=digest.hexdigest(),
        )

    def distances(self, set_features: SetFeatures | None) -> list[SetDistances | None] | None:
        """Return each autoencoder's distances from the set of originals; None without features or with one image."""
        if set_features is None or self.num_images < 2:
            return None
        rows = [self.features[index] for index in sorted(self.features)]
        reference, *others = [torch.stack(column) for column in zip(*rows, strict=True)]
        return [set_distances(reference, other, with_fid=set_features.with_fid) for other in others]


def merge_readings(
    reader: ImageReader, states: list[dict[str, Tensor]]
) -> tuple[ImageReader, list[dict[str, Tensor]]]:
    """Join what all processes read, and add up their sums by name; every process gets both."""
    parts: list[tuple[ImageReader, list[dict[str, Tensor]]]] = gather_object([(reader, states)])
    merged = ImageReader(strict=reader.strict, rounded=reader.rounded, span=reader.span)
    for part, _ in parts:
        merged.take(part)
    totals = []
    for same in zip(*(states for _, states in parts), strict=True):  # one state of each process
        totals.append({name: torch.stack([state[name] for state in same]).sum(dim=0) for name in same[0]})
    return merged, totals
