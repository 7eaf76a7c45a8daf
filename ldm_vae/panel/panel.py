"""The panel: measures, without training, of how well a diffusion model could learn on an autoencoder's latents.

Every figure is put together from sums of numbered batches, or from rows by image, that are added up in their own order
whichever process has them. So any number of processes give the same figures, to the last bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.images.guard import SkippedImage
from ldm_vae.metrics.channels import effective_channels, information_bound, mean_correlation
from ldm_vae.metrics.equivariance import GROUPS
from ldm_vae.metrics.geometry import intrinsic_dimension, linear_accuracy, neighbour_accuracy, uniformity
from ldm_vae.metrics.latents import LatentMetrics, LatentSummary
from ldm_vae.metrics.spectrum import NUM_BINS, high_share, radial_power, spectral_slope
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.panel.measures import SIGMAS
from ldm_vae.panel.passes import PanelPass
from ldm_vae.panel.sums import PanelImages, Tally, gather, panel_batches, pixel_digests
from ldm_vae.system.float64 import in_float64

MAX_POINTS = 1000
"""Images whose whole latents are compared with each other."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One autoencoder's figures."""

    num_images: int
    figures: dict[str, float]
    """By the names in `MEASURES`; what can't be measured is left out."""
    channels: dict[str, list[float]]
    """A number a latent channel: `kl` (nats, where there is a posterior), `std`, `mean_variance`, `slope`."""
    spectrum: list[float]
    """Mean power of normalised latents in rings of rising frequency; NaN for a ring without frequencies."""


@torch.no_grad()
def measure_panels(
    autoencoders: Sequence[InferenceAutoencoder], images: PanelImages
) -> tuple[list[Panel], list[SkippedImage], str]:
    """Measure autoencoders side by side, on the processes of this launch.

    Returns:
        A panel each; the images that couldn't be read; and a SHA-256 over the pixels of those that were.

    Raises:
        ValueError: None of the images can be read, or, where `strict`, one of them can't.
    """
    summaries, image_std = _measure_moments(autoencoders, images)
    tallies = [Tally() for _ in autoencoders]
    digests: dict[int, bytes] = {}
    skipped: list[SkippedImage] = []
    points = set(images.indices[:: max(1, math.ceil(len(images.indices) / MAX_POINTS))])
    for batch in panel_batches(images, skipped, title="panel"):
        digests |= pixel_digests(batch)
        for autoencoder, summary, tally in zip(autoencoders, summaries, tallies, strict=True):
            PanelPass(autoencoder, summary, tally, images).add(batch, image_std=image_std, points=points)
    merged = gather((digests, skipped))
    digests = {index: digest for part, _ in merged for index, digest in part.items()}
    whole = hashlib.sha256(b"".join(digests[index] for index in sorted(digests))).hexdigest()
    lost = sorted((skip for _, part in merged for skip in part), key=lambda skip: skip.index)
    panels = [
        _summarise(tally, summary, factor=autoencoder.family.spatial_factor, label=images.label)
        for tally, summary, autoencoder in zip(tallies, summaries, autoencoders, strict=True)
    ]
    return panels, lost, whole


def _measure_moments(
    autoencoders: Sequence[InferenceAutoencoder], images: PanelImages
) -> tuple[list[LatentSummary], float]:
    """Return the latents' statistics, and the images' standard deviation, which the other measures normalise by."""
    tallies = [Tally() for _ in autoencoders]
    pixels = Tally()
    for batch in panel_batches(images, [], title="statistics of the latents"):
        values = in_float64(images.dataset.targets(batch.images))
        moments = torch.stack([values.sum(), values.square().sum(), torch.ones_like(values).sum()])
        pixels.add(batch, "moments", moments)
        for autoencoder, tally in zip(autoencoders, tallies, strict=True):
            metrics = LatentMetrics(latent_channels=autoencoder.family.latent_channels)
            metrics.update(*autoencoder.encode(batch.images))
            for name, values in metrics.state().items():
                tally.add(batch, name, values)
    summaries = []
    for autoencoder, tally in zip(autoencoders, tallies, strict=True):
        metrics = LatentMetrics(latent_channels=autoencoder.family.latent_channels)
        if totals := tally.merge():
            metrics.load_state(totals)
        summaries.append(metrics.compute())
    total, squares, count = pixels.merge()["moments"].tolist()
    return summaries, math.sqrt(max(squares / count - (total / count) ** 2, 1e-12))


def _summarise(
    tally: Tally, summary: LatentSummary, *, factor: int, label: Callable[[int], int | None] | None
) -> Panel:
    totals = tally.merge()
    count = totals["images"].item()
    figures = {"psnr": totals["psnr"].item() / count}
    if "perceptual" in totals:
        figures["perceptual"] = totals["perceptual"].item() / count
    for group in GROUPS:
        if f"{group}/count" in totals:
            error, size, quality, moved = (
                totals[f"{group}/{name}"].item() for name in ("error", "size", "psnr", "count")
            )
            figures[f"equivariance_{group}"] = math.sqrt(error / size) if size else math.nan
            figures[f"equivariance_psnr_{group}"] = quality / moved
    for kind in ("psnr", "perceptual"):
        for sigma in SIGMAS:
            if f"{kind}_{sigma:g}" in totals:
                figures[f"robustness_{kind}_{sigma:g}"] = totals[f"{kind}_{sigma:g}"].item() / count
    if "path" in totals:
        figures["path_length"] = totals["path"].item() / totals["segments"].item()
    power = totals["power"] / count
    binned = radial_power(power, num_bins=min(NUM_BINS, *power.shape[-2:]))
    figures["spectrum_distance"] = totals["spectrum"].item() / count
    figures["high_frequency_share"] = high_share(power).nanmean().item()
    figures["spectral_slope"] = spectral_slope(binned.mean(dim=0))
    figures |= _channel_figures(totals, summary, factor=factor) | _cloud_figures(tally, label=label)
    return Panel(
        num_images=int(count),
        figures={name: value for name, value in figures.items() if not math.isinf(value)},
        channels={
            **({} if summary.channel_kl is None else {"kl": summary.channel_kl}),
            "std": summary.channel_std,
            "mean_variance": summary.channel_mean_variance,
            "slope": [spectral_slope(channel) for channel in binned],
        },
        spectrum=binned.mean(dim=0).tolist(),
    )


def _channel_figures(totals: dict[str, Tensor], summary: LatentSummary, *, factor: int) -> dict[str, float]:
    covariance = totals["outer"] / totals["positions"]
    figures: dict[str, float] = {}
    if summary.channel_kl is not None:
        of_samples = covariance.clone().fill_diagonal_(1)  # sampling adds the posterior's variance, which makes it 1
        nats = information_bound(of_samples, mean_log_std=totals["log_std"] / totals["positions"])
        bits = math.log(2) * factor**2
        figures = {"bits_per_pixel": sum(summary.channel_kl) / bits, "information_bits_per_pixel": nats / bits}
    return figures | {
        "active_channels": summary.active_channels,
        "effective_channels": effective_channels(covariance),
        "channel_correlation": mean_correlation(covariance),
    }


def _cloud_figures(tally: Tally, *, label: Callable[[int], int | None] | None) -> dict[str, float]:
    points = torch.stack([tally.points[index] for index in sorted(tally.points)])
    figures = {"intrinsic_dimension": intrinsic_dimension(points), "uniformity": uniformity(points)}
    indices = sorted(tally.features)
    numbered = [] if label is None else [(index, label(index)) for index in indices]
    labelled = {index: number for index, number in numbered if number is not None}
    if len(set(labelled.values())) > 1:
        features = torch.stack([tally.features[index] for index in labelled])
        labels = torch.tensor(list(labelled.values()))
        figures["knn_accuracy"] = neighbour_accuracy(features, labels)
        figures["linear_accuracy"] = linear_accuracy(features, labels)
    return {name: value for name, value in figures.items() if not math.isnan(value)}
