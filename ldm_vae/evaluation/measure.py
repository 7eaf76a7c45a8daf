"""The numbers of `evaluate` and `export`, from one pass over images, whole over all processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from ldm_vae.evaluation.features import MeasuringNetworks
from ldm_vae.evaluation.grid import GridRows
from ldm_vae.evaluation.pictures import PictureLog
from ldm_vae.evaluation.reading import ImagePass, ImageReader, MeasuredImages, merge_readings
from ldm_vae.images.evaluation import EvaluationBatch
from ldm_vae.latents.statistics import ChannelMoments, RowMoments
from ldm_vae.metrics.latents import LatentMetrics, LatentSummary
from ldm_vae.metrics.reconstruction import ReconstructionMetrics, ReconstructionSummary
from ldm_vae.metrics.sets import SetDistances
from ldm_vae.models.families.family import Family
from ldm_vae.models.families.parts import Reconstruction
from ldm_vae.models.precision import autocast
from ldm_vae.system.pixels import as_pictures, chosen_channels


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
    """Rows of an original and its reconstructions."""


@dataclass(frozen=True, kw_only=True)
class MeasuredLatents:
    """An autoencoder's latents, measured on a set of images."""

    summary: LatentSummary
    images: MeasuredImages
    patches: ChannelMoments | None
    """Moments a channel and place in a patch, where pipelines normalise patches."""


def measure_latents(family: Family, images: ImagePass) -> MeasuredLatents:
    """Return the statistics of the images' latents, in float32 on the model's device.

    Where pipelines normalise patches (FLUX.2), `patches` holds the moments of the patches' channels, over the
    posteriors' means, which such pipelines encode. They are put together in float64 from each image's moments, in the
    order of the images, so they depend neither on batches nor on processes.

    Raises:
        ValueError: None of the images can be read, or, where the pass is strict, one of them can't.
    """
    metrics = LatentMetrics(latent_channels=family.latent_channels)
    rows: dict[int, RowMoments] = {}
    reader = ImageReader.of(images)
    for batch in images.batches(title="latent statistics"):
        originals = reader.read(batch)
        if originals is not None:
            mean, std = family.encode_moments(originals.to(family.device))
            metrics.update(mean, std)
            if family.patch_size > 1:
                patches = pixel_unshuffle(mean, family.patch_size)
                pairs = zip(batch.indices, patches, strict=True)
                rows |= {index: RowMoments.of(patch[None]) for index, patch in pairs}
    reader, states = merge_readings(reader, [metrics.state()])
    metrics.load_state(states[0])
    everyones: dict[int, RowMoments] = {}
    for part in gather_object([rows]):
        everyones |= part
    return MeasuredLatents(
        summary=metrics.compute(),
        images=reader.summary(),
        patches=ChannelMoments.of_rows(everyones[index] for index in sorted(everyones)) if everyones else None,
    )


class Measuring:
    """Autoencoders side by side on batches of images: figures, and pictures for the grid and the report.

    Args:
        families: Autoencoders, all on one device and of the same image channels.
        images: The pass over the images.
        networks: What reconstructions are compared by, on the autoencoders' device.
        bf16: Whether convolutions run in bf16.
        num_pictures: Rows to keep for a picture grid, spread over the images.
        log: Takes the figures of each image and some of the pictures.
        per_channel: Whether each channel of the images is measured by itself too.
    """

    def __init__(
        self,
        families: Sequence[Family],
        images: ImagePass,
        *,
        networks: MeasuringNetworks,
        bf16: bool,
        num_pictures: int,
        log: PictureLog | None = None,
        per_channel: bool = False,
    ) -> None:
        self._families, self._networks, self._bf16, self.log = families, networks, bf16, log
        self._target_channels, self._span = images.dataset.target_channels, images.dataset.span
        self.metrics = [
            ReconstructionMetrics(
                perceptual=networks.perceptual,
                latent_channels=family.latent_channels,
                codebook_size=family.codebook_size,
                image_channels=family.out_channels if per_channel else None,
                rounded=not images.dataset.value_range,
                span=self._span,
            )
            for family in families
        ]
        self.reader = ImageReader.of(images)
        self.grid = GridRows(num_rows=num_pictures, indices=images.indices, span=self._span, view=networks.view)

    def add(self, batch: EvaluationBatch) -> None:
        """Decode the posterior's mean of a batch's images with each autoencoder, and measure that.

        Raises:
            ValueError: One of the images can't be read, where the pass is strict.
        """
        originals = self.reader.read(batch)
        if originals is None:
            return
        originals = originals.to(self._families[0].device)
        made = [reconstruct(family, originals, bf16=self._bf16) for family in self._families]
        targets = chosen_channels(originals, self._target_channels)
        scores = [
            metric.update(targets, each.images, each.mean, each.std, each.indices)
            for metric, each in zip(self.metrics, made, strict=True)
        ]
        columns = [targets, *(each.images for each in made)]
        if self.log is not None:
            shown = [as_pictures(column, self._span) for column in columns]
            self.log.add(batch, shown, [each.mean for each in made], scores)
        set_features = self._networks.set_features
        if set_features is not None:
            self.reader.add_features(batch.indices, [set_features(column).cpu() for column in columns])
        self.grid.add(batch.indices, columns)

    def take_sums(self) -> list[dict[str, Tensor]]:
        """Return the sums of each autoencoder since the last call, and begin anew."""
        sums = [metric.state() for metric in self.metrics]
        for metric, state in zip(self.metrics, sums, strict=True):
            metric.load_state({name: torch.zeros_like(total) for name, total in state.items()})
        return sums

    def add_sums(self, sums: Sequence[Mapping[str, Tensor]]) -> None:
        """Add what `take_sums` returned elsewhere."""
        for metric, state in zip(self.metrics, sums, strict=True):
            metric.load_state({name: total + state[name] for name, total in metric.state().items()})

    def take(self, part: Measuring) -> None:
        """Take in what was read elsewhere, but for the sums."""
        self.reader.take(part.reader)
        self.grid.merge([part.grid])
        if self.log is not None and part.log is not None:
            self.log.take(part.log)

    def without_networks(self) -> Measuring:
        """Return what was read and the pictures alone, to be sent elsewhere."""
        part = copy.copy(self)
        part._families, part._networks, part.metrics = [], MeasuringNetworks(), []
        part.grid = replace(self.grid, indices=[])
        part.log = None if self.log is None else replace(self.log, indices=[])
        return part

    def comparison(self) -> Comparison:
        """Return the comparison over the images of all processes of this launch.

        Raises:
            ValueError: None of the images can be read.
        """
        if self.log is not None:
            self.log.merge(gather_object([self.log]))
        self.grid.merge(gather_object([self.grid]))
        reader, states = merge_readings(self.reader, [metric.state() for metric in self.metrics])
        for metric, state in zip(self.metrics, states, strict=True):
            metric.load_state(state)
        distances = reader.distances(self._networks.set_features) or [None] * len(self.metrics)
        return Comparison(
            images=reader.summary(),
            measurements=[
                Measurement(summary=metric.compute(), distances=distance)
                for metric, distance in zip(self.metrics, distances, strict=True)
            ],
            pictures=self.grid.rows,
        )


def measure_reconstructions(families: Sequence[Family], images: ImagePass, **arguments: Any) -> Comparison:
    """Measure autoencoders side by side on the images; the arguments are those of `Measuring`.

    Raises:
        ValueError: None of the images can be read, or, where the pass is strict, one of them can't.
    """
    measuring = Measuring(families, images, **arguments)
    for batch in images.batches(title="reconstructions"):
        measuring.add(batch)
    return measuring.comparison()


def reconstruct(family: Family, images: Tensor, *, bf16: bool = False) -> Reconstruction:
    """Return what an autoencoder makes of images [B, C, H, W] in [-1, 1], convolutions in `bf16` where asked for."""
    with autocast(images.device, enabled=bf16):
        return family.reconstruct(images)
