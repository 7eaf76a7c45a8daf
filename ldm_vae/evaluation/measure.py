"""One pass over images that gives the numbers of `evaluate` and `export`, whole over all processes.

Under `accelerate launch` or `torchrun` each process takes every P-th image; the results don't depend on P.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from ldm_vae.config.views import View
from ldm_vae.evaluation.features import SetFeatures
from ldm_vae.evaluation.pictures import PictureLog
from ldm_vae.images.evaluation import EvaluationBatch, EvaluationSamples, evaluation_batches
from ldm_vae.images.training import SkippedImage
from ldm_vae.images.transforms import to_shown
from ldm_vae.latents.statistics import ChannelMoments, RowMoments
from ldm_vae.metrics.latents import LatentMetrics, LatentSummary
from ldm_vae.metrics.reconstruction import ReconstructionMetrics, ReconstructionSummary
from ldm_vae.metrics.sets import SetDistances, set_distances
from ldm_vae.models.families.family import Family
from ldm_vae.models.families.parts import Reconstruction
from ldm_vae.models.precision import autocast
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
class Measurement:
    """One autoencoder, measured on a set of images."""

    summary: ReconstructionSummary
    distances: SetDistances | None
    """None where there is no network for its features, or fewer than two images."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several autoencoders, measured on the same images."""

    images: MeasuredImages
    measurements: list[Measurement]
    """One an autoencoder, in the order in which these were given."""
    pictures: list[list[Image.Image]]
    """Rows of an original and its reconstructions; on the main process alone."""


@dataclass(frozen=True, kw_only=True)
class MeasuredLatents:
    """An autoencoder's latents, measured on a set of images."""

    summary: LatentSummary
    images: MeasuredImages
    patches: ChannelMoments | None
    """Moments a channel and place in a patch, where pipelines normalise patches."""


def spread_indices(num_available: int, *, num_images: int | None) -> list[int]:
    """Return at most `num_images` indices, spread evenly over those available."""
    count = num_available if num_images is None else min(num_images, num_available)
    return [i * num_available // count for i in range(count)]


def measure_latents(
    family: Family,
    dataset: EvaluationSamples,
    *,
    indices: Sequence[int],
    batch_size: int,
    num_workers: int,
    strict: bool,
) -> MeasuredLatents:
    """Return the statistics of the latents of the images `indices`, in float32 on the model's device.

    Where pipelines normalise patches (FLUX.2), `patches` holds the moments of the patches' channels, over the
    posteriors' means, which such pipelines encode. They are put together in float64 from each image's moments, in the
    order of the images, so they depend neither on batches nor on processes.

    Raises:
        ValueError: None of the images can be read, or, where `strict`, one of them can't.
    """
    metrics = LatentMetrics(latent_channels=family.latent_channels)
    rows: dict[int, RowMoments] = {}
    reader = _Reader(strict=strict, rounded=not dataset.value_range, span=dataset.span)
    for batch in _batches(dataset, indices, batch_size, num_workers, title="latent statistics"):
        images = reader.read(batch)
        if images is not None:
            mean, std = family.encode_moments(images.to(family.device))
            metrics.update(mean, std)
            if family.patch_size > 1:
                patches = pixel_unshuffle(mean, family.patch_size)
                pairs = zip(batch.indices, patches, strict=True)
                rows |= {index: RowMoments.of(patch[None]) for index, patch in pairs}
    reader, states = _merge(reader, [metrics.state()])
    metrics.load_state(states[0])
    everyones: dict[int, RowMoments] = {}
    for part in gather_object([rows]):
        everyones |= part
    return MeasuredLatents(
        summary=metrics.compute(),
        images=reader.summary(),
        patches=ChannelMoments.of_rows(everyones[index] for index in sorted(everyones)) if everyones else None,
    )


def measure_reconstructions(
    families: Sequence[Family],
    dataset: EvaluationSamples,
    *,
    indices: Sequence[int],
    batch_size: int,
    num_workers: int,
    bf16: bool,
    perceptual: nn.Module | None,
    set_features: SetFeatures | None,
    num_pictures: int,
    strict: bool,
    log: PictureLog | None = None,
    view: View | None = None,
    per_channel: bool = False,
) -> Comparison:
    """Decode the posterior's mean of the images `indices` with each autoencoder, on its device.

    Args:
        families: Autoencoders, all on one device and of the same image channels.
        dataset: Where the images come from, as [C, H, W] in [-1, 1].
        indices: Which images of `dataset`; each process takes its share.
        batch_size: Images at once.
        num_workers: Decoding processes.
        bf16: Whether convolutions run in bf16.
        perceptual: Perceptual distance, on the autoencoders' device; None measures none.
        set_features: Network of the distances between the sets of pictures; None measures none.
        num_pictures: Rows to keep for a picture grid, spread over the images.
        strict: Whether an unreadable image is an error.
        log: Takes the figures of each image and some of the pictures, and has those of all processes in the end.
        view: Which channels the picture grid shows.
        per_channel: Whether each channel of the images is measured by itself too.

    Raises:
        ValueError: None of the images can be read, or, where `strict`, one of them can't.
    """
    device = families[0].device
    metrics = [
        ReconstructionMetrics(
            perceptual=perceptual,
            latent_channels=family.latent_channels,
            codebook_size=family.codebook_size,
            image_channels=family.in_channels if per_channel else None,
            rounded=not dataset.value_range,
            span=dataset.span,
        )
        for family in families
    ]
    reader = _Reader(strict=strict, rounded=not dataset.value_range, span=dataset.span)
    pictures: list[list[Image.Image]] = []
    every = max(1, len(_share(indices)) // max(1, num_pictures))
    for batch in _batches(dataset, indices, batch_size, num_workers, title="reconstructions"):
        images = reader.read(batch)
        if images is None:
            continue
        images = images.to(device)
        made = [reconstruct(family, images, bf16=bf16) for family in families]
        scores = [
            metric.update(images, each.images, each.mean, each.std, each.indices)
            for metric, each in zip(metrics, made, strict=True)
        ]
        columns = [images, *(each.images for each in made)]
        if log is not None:
            log.add(batch, made, scores)
        if set_features is not None:
            reader.add_features(batch.indices, [set_features(column).cpu() for column in columns])
        for row in range(len(images)):
            if (reader.num_images - len(images) + row) % every == 0 and len(pictures) < num_pictures:
                pictures.append([to_shown(as_pictures(column[row], dataset.span), view) for column in columns])
    reader, states = _merge(reader, [metric.state() for metric in metrics])
    for metric, state in zip(metrics, states, strict=True):
        metric.load_state(state)
    if log is not None:
        log.merge(gather_object([log]))
    distances = reader.distances(set_features) or [None] * len(metrics)
    return Comparison(
        images=reader.summary(),
        measurements=[
            Measurement(summary=metric.compute(), distances=distance)
            for metric, distance in zip(metrics, distances, strict=True)
        ],
        pictures=pictures,
    )


def reconstruct(family: Family, images: Tensor, *, bf16: bool = False) -> Reconstruction:
    """Return what an autoencoder makes of images [B, C, H, W] in [-1, 1], convolutions in `bf16` where asked for."""
    with autocast(images.device, enabled=bf16):
        return family.reconstruct(images)


def short_name(source: str) -> str:
    """Return what to call an autoencoder in a table: a folder's or file's own name, or the hub id."""
    path = Path(source).expanduser()
    return (path.resolve().name or source) if path.exists() else source


@dataclass(kw_only=True)
class _Reader:
    """What one process reads; the readers of all processes merge into one."""

    strict: bool
    rounded: bool  # whether images are pictures of 8 bits
    span: Span
    digests: dict[int, bytes] = field(default_factory=dict)
    features: dict[int, list[Tensor]] = field(default_factory=dict)
    skipped: list[SkippedImage] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        return len(self.digests)

    def read(self, batch: EvaluationBatch) -> Tensor | None:
        self.skipped += batch.skipped
        if self.strict and self.skipped:
            raise ValueError(f"{self.skipped[0].name} can't be read as an image: {self.skipped[0].reason}")
        if batch.images is None:
            return None
        seen = to_pixels(as_pictures(batch.images, self.span)).byte() if self.rounded else batch.images
        for index, pixels in zip(batch.indices, seen, strict=True):
            self.digests[index] = hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()
        return batch.images

    def add_features(self, indices: list[int], columns: list[Tensor]) -> None:
        for row, index in enumerate(indices):
            # not views, which would be pickled with their whole batch
            self.features[index] = [column[row].clone() for column in columns]

    def summary(self) -> MeasuredImages:
        digest = hashlib.sha256(b"".join(self.digests[index] for index in sorted(self.digests)))
        return MeasuredImages(
            num_images=self.num_images,
            skipped=sorted(self.skipped, key=lambda skipped: skipped.index),
            fingerprint=digest.hexdigest(),
        )

    def distances(self, set_features: SetFeatures | None) -> list[SetDistances | None] | None:
        if set_features is None or self.num_images < 2:
            return None
        rows = [self.features[index] for index in sorted(self.features)]
        reference, *others = [torch.stack(column) for column in zip(*rows, strict=True)]
        return [set_distances(reference, other, with_fid=set_features.with_fid) for other in others]


def _share(indices: Sequence[int]) -> Sequence[int]:
    state = join_processes()
    return indices[state.process_index :: state.num_processes]


def _batches(
    dataset: EvaluationSamples, indices: Sequence[int], batch_size: int, num_workers: int, *, title: str
) -> Iterator[EvaluationBatch]:
    """The batches of this process's share, with a progress bar on the main one."""
    share, state = _share(indices), join_processes()
    batches = evaluation_batches(
        dataset, indices=share, batch_size=batch_size, num_workers=num_workers, pin_memory=state.device.type == "cuda"
    )
    with progress(len(share), what=title, unit="image", show=state.is_main_process, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.indices) + len(batch.skipped))


def _merge(reader: _Reader, states: list[dict[str, Tensor]]) -> tuple[_Reader, list[dict[str, Tensor]]]:
    """Join what all processes read, and add up their sums by name; every process gets both."""
    parts: list[tuple[_Reader, list[dict[str, Tensor]]]] = gather_object([(reader, states)])
    merged = _Reader(strict=reader.strict, rounded=reader.rounded, span=reader.span)
    for part, _ in parts:
        merged.digests |= part.digests
        merged.features |= part.features
        merged.skipped += part.skipped
    totals = []
    for same in zip(*(states for _, states in parts), strict=True):  # one state of each process
        totals.append({name: torch.stack([state[name] for state in same]).sum(dim=0) for name in same[0]})
    return merged, totals
