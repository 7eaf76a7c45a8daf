"""What an export measures on a run's autoencoder, once its activations fit into float16."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm_vae.audio.datasets import EvaluationSounds
from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.names import PerceptualChoice
from ldm_vae.config.run import Config
from ldm_vae.evaluation.features import MeasuringNetworks, choose_perceptual
from ldm_vae.evaluation.measure import Comparison, MeasuredLatents, measure_latents, measure_reconstructions
from ldm_vae.evaluation.reading import ImagePass
from ldm_vae.evaluation.results import Protocol, Score, channel_figures, describe_scores
from ldm_vae.exporting.data import MeasuredData, open_data, precision_batches
from ldm_vae.exporting.headroom import PrecisionReport, fit_float16
from ldm_vae.exporting.mosaic import mosaic
from ldm_vae.models.exact.check import StripsCheck, check_strips
from ldm_vae.models.families.family import Family
from ldm_vae.system.cores import count_workers
from ldm_vae.system.launch import join_processes
from ldm_vae.training.run_autoencoder import RunAutoencoder

CARD_PICTURES = 4


@dataclass(frozen=True, kw_only=True)
class RunMeasurements:
    """A run's autoencoder and what was measured on it."""

    family: Family
    """With weights whose activations fit into float16, where they could be made to."""
    precision: PrecisionReport
    precision_statement: str
    latents: MeasuredLatents
    latents_data: MeasuredData
    reconstructions: Comparison
    reconstructions_data: MeasuredData
    protocol: Protocol
    """Of the reconstructions."""
    metrics: dict[str, Score]
    """Of the reconstructions, by name."""
    strips: StripsCheck
    """How far large images in strips are from whole ones."""

    @property
    def value_range(self) -> list[float]:
        """The range of the reconstructed images' numbers; empty where they are pictures of 8 bits."""
        return self.reconstructions_data.images.value_range

    @property
    def image_channels(self) -> dict[str, list[float]] | None:
        """`psnr`, `mean` and `std` of each channel of the images, where they were measured."""
        return channel_figures(self.reconstructions.measurements[0].summary.image_channels, protocol=self.protocol)


def measure_run(run: RunAutoencoder, options: ExportOptions) -> RunMeasurements:
    """Measure latents, reconstructions, 16-bit types and strips, on this process's device.

    Raises:
        ValueError: In one line, for data that can't be read.
    """
    family = run.family.to(join_processes().device, memory_format=torch.channels_last)
    latents_data, reconstructions_data = open_data(run, options)
    batches = list(precision_batches(reconstructions_data, options))
    span = reconstructions_data.images.span
    family, precision, statement = fit_float16(family, batches, repair=options.repair, span=span)
    latents = measure_latents(family, _pass_over(latents_data, options))
    reconstructions, protocol = _measure_reconstructions(family, reconstructions_data, options, recipe=run.config)
    return RunMeasurements(
        family=family,
        precision=precision,
        precision_statement=statement,
        latents=latents,
        latents_data=latents_data,
        reconstructions=reconstructions,
        reconstructions_data=reconstructions_data,
        protocol=protocol,
        metrics=describe_scores(reconstructions.measurements[0], protocol=protocol),
        strips=check_strips(family, mosaic(batches)),
    )


def _pass_over(data: MeasuredData, options: ExportOptions) -> ImagePass:
    return ImagePass(
        dataset=data.images,
        indices=data.indices,
        batch_size=options.batch_size,
        num_workers=count_workers(options.num_workers),
        strict=options.strict,
    )


def _measure_reconstructions(
    family: Family, data: MeasuredData, options: ExportOptions, *, recipe: Config
) -> tuple[Comparison, Protocol]:
    """Measure reconstructions, and of numbers in a declared range each channel by itself too."""
    view, value_range = recipe.view, data.images.target_range
    choice: PerceptualChoice = "none" if view is None else "auto"
    name, perceptual = choose_perceptual(choice, weights=None, device=family.device, view=view)
    networks = MeasuringNetworks(view=view, perceptual_name=name, perceptual=perceptual)
    measured = measure_reconstructions(
        [family],
        _pass_over(data, options),
        networks=networks,
        bf16=False,
        num_pictures=CARD_PICTURES,
        per_channel=bool(value_range),
    )
    protocol = Protocol(
        resolution=data.images.resolution,
        is_sound=isinstance(data.images, EvaluationSounds),
        factor=family.spatial_factor,
        bf16=False,
        perceptual=name,
        set_features=None,
        view=view,
        value_range=value_range,
        target_channels=data.images.target_channels,
        sizes=data.images.sizes,
    )
    return measured, protocol
