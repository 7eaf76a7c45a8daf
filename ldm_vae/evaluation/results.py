"""Measured numbers with how each was measured, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import ldm_vae
from ldm_vae.evaluation.features import SetFeatures
from ldm_vae.evaluation.measure import ReconstructionResult
from ldm_vae.metrics.reconstruction import ACTIVE_VARIANCE

_PACKAGES = ("torch", "diffusers", "torchmetrics", "pillow", "lpips", "torch-fidelity")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number, and how it was measured."""

    value: float
    unit: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all numbers of a measurement share."""

    resolution: int | None
    factor: int
    bf16: bool
    perceptual: str | None
    set_features: SetFeatures | None

    @property
    def pictures(self) -> str:
        """What was reconstructed, and what of it was compared."""
        if self.resolution is not None:
            side = self.resolution
            cut = f"short side resized to {side} (bicubic, antialiased), centre crop {side}x{side}"
        else:
            cut = f"whole pictures, cut around the middle to a multiple of {self.factor} pixels a side"
        precision = "bf16 autocast" if self.bf16 else "float32"
        return f"{cut}; reconstruction of the posterior's mean in {precision}, clamped and rounded to 8 bits"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One autoencoder at one size of picture."""

    vae: str
    name: str
    vae_fingerprint: str
    """SHA-256 of architecture, scaling and weights."""
    resolution: int | None
    num_images: int
    num_skipped: int
    data_fingerprint: str
    """SHA-256 of the measured pixels."""
    metrics: dict[str, Metric]
    channels: dict[str, list[float]]
    """A number a latent channel: `kl` (nats an element), `std`, and `mean_variance`, the posterior mean's variance."""

    def __getitem__(self, metric: str) -> float:
        return self.metrics[metric].value


def describe_metrics(result: ReconstructionResult, *, protocol: Protocol) -> dict[str, Metric]:
    """The numbers of one autoencoder, each with its unit and protocol. Set distances are named for their network."""
    summary = result.summary
    latents, pictures = summary.latents, protocol.pictures
    metrics = {
        "psnr": Metric(value=summary.psnr, unit="dB", protocol=f"mean over images of each one's PSNR; {pictures}"),
        "ssim": Metric(
            value=summary.ssim,
            unit="",
            protocol=f"Gaussian window 11, sigma 1.5, mean over channels, pixels and images; {pictures}",
        ),
    }
    if summary.perceptual is not None:
        assert protocol.perceptual is not None
        metrics[protocol.perceptual] = Metric(
            value=summary.perceptual,
            unit="",
            protocol=f"{_PERCEPTUAL[protocol.perceptual]}, mean over images; {pictures}",
        )
    if result.distances is not None:
        metrics |= _set_metrics(result, protocol=protocol)
    metrics |= {
        "kl": Metric(
            value=summary.kl,
            unit="nats/element",
            protocol="KL divergence of an image's posterior from N(0, 1) over the image's C·H·W, mean over images",
        ),
        "bits_per_dim": Metric(value=summary.bits_per_dim, unit="bits/element", protocol="kl / ln 2"),
        "active_channels": Metric(
            value=latents.active_channels,
            unit=f"of {len(latents.channel_kl)}",
            protocol=f"channels whose posterior mean's variance over images and positions exceeds {ACTIVE_VARIANCE}",
        ),
        "latent_mean": Metric(value=latents.mean, unit="", protocol="over all elements of the latents"),
        "latent_std": Metric(
            value=latents.std,
            unit="",
            protocol="of posterior samples about their mean over all elements, sqrt(E[mean^2 + std^2] - E[mean]^2)",
        ),
    }
    return metrics


_PERCEPTUAL = {
    "lpips_vgg": "LPIPS 0.1 (VGG16) of pictures in [-1, 1]",
    "lpips_alex": "LPIPS 0.1 (AlexNet) of pictures in [-1, 1]",
    "lpips_squeeze": "LPIPS 0.1 (SqueezeNet 1.1) of pictures in [-1, 1]",
    "efficientnet_lite0": "squared distance of channel-normalised EfficientNet-Lite0 features at five depths, "
    "uncalibrated and not comparable with LPIPS",
}


def _set_metrics(result: ReconstructionResult, *, protocol: Protocol) -> dict[str, Metric]:
    distances, features = result.distances, protocol.set_features
    assert distances is not None
    assert features is not None
    shared = f"reconstructions against the {result.summary.num_images} originals, cropped alike; {features.protocol}"
    kid = Metric(
        value=distances.kid,
        unit="",
        protocol=f"unbiased cubic-kernel MMD^2 without the pairs (original, own reconstruction), mean of "
        f"{distances.kid_subsets} disjoint subsets of at most {distances.kid_subset_size} images (their std "
        f"{distances.kid_std:.3g}); {shared}; {protocol.pictures}",
    )
    metrics = {f"rkid_{features.name}": kid}
    if distances.fid is not None:
        metrics[f"rfid_{features.name}"] = Metric(
            value=distances.fid,
            unit="",
            protocol=f"Frechet distance, biased upwards by few images; {shared}; {protocol.pictures}",
        )
    return metrics


def format_table(evaluations: Sequence[Evaluation]) -> str:
    """A Markdown table, a row an evaluation, aligned for reading as plain text too."""
    columns = [name for name in evaluations[0].metrics if name not in ("kl", "latent_mean")]
    rows = [["vae", "resolution", "images", *(_title(evaluations[0], name) for name in columns)]]
    for evaluation in evaluations:
        resolution = "whole" if evaluation.resolution is None else str(evaluation.resolution)
        values = [_format(evaluation.metrics[name]) for name in columns]
        rows.append([evaluation.name, resolution, str(evaluation.num_images), *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def _title(evaluation: Evaluation, name: str) -> str:
    unit = evaluation.metrics[name].unit
    return f"{name} (dB)" if unit == "dB" else name


def _format(metric: Metric) -> str:
    if isinstance(metric.value, int):
        return str(metric.value)
    return f"{metric.value:.2f}" if metric.unit == "dB" else f"{metric.value:.4f}"


def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on, of those installed."""
    found = {"ldm-vae": ldm_vae.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
