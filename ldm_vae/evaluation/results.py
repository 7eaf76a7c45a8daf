"""Measured numbers with how each was measured, as JSON and as a table."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ldm_vae
from ldm_vae.audio.mels import MEL_RANGE
from ldm_vae.config.views import GREY, RGB, View
from ldm_vae.evaluation.features import SetFeatures
from ldm_vae.evaluation.measure import Measurement
from ldm_vae.metrics.image_channels import ImageChannelSummary
from ldm_vae.metrics.latents import ACTIVE_VARIANCE
from ldm_vae.metrics.reconstruction import ReconstructionSummary
from ldm_vae.metrics.sets import SUBSET_SIZE, KernelDistance
from ldm_vae.panel.panel import Panel

PROTOCOL_VERSION = 3
"""Raised whenever a figure changes its meaning under an unchanged name."""
_PACKAGES = ("torch", "diffusers", "torchmetrics", "pillow", "lpips", "torch-fidelity")
_SSIM = "Gaussian window of 11 pixels, sigma 1.5, whole windows only, mean over channels, places and images"
_PERCEPTUAL = {
    "lpips_vgg": "LPIPS 0.1 (VGG16) of pictures in [-1, 1]",
    "lpips_alex": "LPIPS 0.1 (AlexNet) of pictures in [-1, 1]",
    "lpips_squeeze": "LPIPS 0.1 (SqueezeNet 1.1) of pictures in [-1, 1]",
    "efficientnet_lite0": "squared distance of channel-normalised EfficientNet-Lite0 features at five depths, "
    "uncalibrated and not comparable with LPIPS",
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number, its unit, and how it was measured."""

    value: float
    unit: str
    protocol: str

    def __str__(self) -> str:
        """Return the number to four digits behind the point (dB: two), or as a word where it isn't finite."""
        if not math.isfinite(self.value):
            return str(self.value)
        if isinstance(self.value, int):
            return str(self.value)
        return f"{self.value:.2f}" if self.unit == "dB" else f"{self.value:.4f}"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all numbers of a measurement share."""

    resolution: int | None
    """Side of the square pictures, in pixels; None: whole pictures."""
    factor: int
    """Sides of whole pictures are cut to a multiple of this."""
    bf16: bool
    perceptual: str | None
    """Name of the perceptual distance."""
    set_features: SetFeatures | None
    view: View | None = None
    """What networks for photographs see of the images; None: grey or RGB."""
    sizes: Sequence[tuple[int, int]] = ()
    """(width, height) of the shapes of which each picture got the nearest; empty where it got none."""
    value_range: Sequence[float] = ()
    """The declared range of the numbers that were compared; empty where images are pictures of 8 bits."""
    target_channels: Sequence[int] = ()
    """Channels of the images that were compared, which the autoencoders make; none: all."""
    is_sound: bool = False
    """Whether pictures are mels of sounds, of `resolution` frames."""

    @property
    def cut(self) -> str:
        """Return, in words, what of the pictures was taken."""
        if self.is_sound:
            low, high = MEL_RANGE
            return f"mels of the middle {self.resolution} frames, black at {low:.4g}, white at {high:g}"
        if self.resolution is not None:
            side = self.resolution
            return f"short side resized to {side} (bicubic, antialiased), centre crop {side}x{side}"
        if self.sizes:
            shapes = ", ".join(f"{width}x{height}" for width, height in self.sizes)
            return f"each cut about its middle and resized (bicubic, antialiased) to the nearest in shape of {shapes}"
        return f"whole pictures, cut around the middle to a multiple of {self.factor} pixels a side"

    @property
    def pictures(self) -> str:
        """Return, in words, what was reconstructed and what of it was compared."""
        precision = "bf16 autocast" if self.bf16 else "float32"
        rounded = "clamped and rounded to 8 bits"
        if self.value_range:
            ends = ", ".join(f"{end:g}" for end in self.value_range)
            rounded = f"clamped to the declared range ({ends}), whose width counts as 255 levels"
        if self.target_channels:
            rounded += f", beside channels {', '.join(map(str, self.target_channels))} of the image"
        return f"{self.cut}; reconstruction of the posterior's mean in {precision}, {rounded}"

    @property
    def seen(self) -> str:
        """Return, in words, what networks for photographs saw; empty for plain grey and RGB."""
        if self.view is None or (self.view.alpha is None and self.view in (RGB, GREY)):
            return ""
        if self.view.alpha is not None:
            return "; colours multiplied by alpha, mean of black and white behind them (sets of pictures: white)"
        return f"; channels {', '.join(map(str, self.view.channels))} of the image"

    def record(self) -> dict[str, Any]:
        """Return the protocol for a file, with its SHA-256: figures with equal hashes, on equal images, compare."""
        features = self.set_features
        content = {
            "version": PROTOCOL_VERSION,
            "resolution": self.resolution,
            **({"mel_frames": self.resolution} if self.is_sound else {}),
            "multiple_of": self.factor if self.resolution is None else None,
            "pictures": self.pictures,
            "ssim": _SSIM,
            "perceptual": None if self.perceptual is None else _PERCEPTUAL[self.perceptual],
            "seen": self.seen,
            "set_features": None if features is None else f"{features.name}: {features.protocol}",
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One autoencoder at one size of picture."""

    vae: str
    """As it was given: a folder, a file or a hub id."""
    name: str
    """What tables call it."""
    vae_fingerprint: str
    """SHA-256 of architecture, scaling and weights."""
    resolution: int | None
    """Side of the square pictures, in pixels; None: whole pictures."""
    num_images: int
    num_skipped: int
    num_nonfinite: int
    """Images whose reconstruction holds NaN or infinity."""
    data_fingerprint: str
    """SHA-256 of the measured pixels."""
    protocol: dict[str, Any]
    """What all figures share, with a hash of it (`Protocol.record`)."""
    metrics: dict[str, Score]
    channels: dict[str, list[float]]
    """A number a latent channel: `kl` (nats an element, where there is a posterior), `std`, and `mean_variance`, the
    posterior mean's variance."""
    image_channels: dict[str, list[float]] | None = None
    """One number an image channel: `psnr`, and `mean` and `std` of the images' own values, in their own units; None
    where that wasn't asked for."""
    panel: Panel | None = None
    """How well a diffusion model could learn on the latents; None where that wasn't asked for."""

    def __getitem__(self, metric: str) -> float:
        """Return the value of a metric."""
        return self.metrics[metric].value

    @property
    def nonfinite_metrics(self) -> list[str]:
        """Return the names of the metrics that aren't finite numbers."""
        return [name for name, score in self.metrics.items() if not math.isfinite(score.value)]


def describe_scores(measurement: Measurement, *, protocol: Protocol) -> dict[str, Score]:
    """Return the numbers of one autoencoder by name. Distances of sets are named for the network of their features."""
    summary = measurement.summary
    latents, pictures = summary.latents, protocol.pictures
    scores = {
        "psnr": Score(value=summary.psnr, unit="dB", protocol=f"mean over images of each one's PSNR; {pictures}"),
        "ssim": Score(value=summary.ssim, unit="", protocol=f"{_SSIM}; {pictures}"),
    }
    if summary.perceptual is not None:
        assert protocol.perceptual is not None
        how = f"{_PERCEPTUAL[protocol.perceptual]}{protocol.seen}, mean over images; {pictures}"
        scores[protocol.perceptual] = Score(value=summary.perceptual, unit="", protocol=how)
    if measurement.distances is not None:
        scores |= _set_scores(measurement, protocol=protocol)
    if summary.codebook_size is not None:
        scores |= _code_scores(summary)
    elif summary.kl is not None and summary.bits_per_dim is not None:
        scores["kl"] = Score(
            value=summary.kl,
            unit="nats/element",
            protocol="KL divergence of an image's posterior from N(0, 1) over the image's C·H·W, mean over images",
        )
        scores["bits_per_dim"] = Score(value=summary.bits_per_dim, unit="bits/element", protocol="kl / ln 2")
    return scores | {
        "active_channels": Score(
            value=latents.active_channels,
            unit=f"of {len(latents.channel_mean)}",
            protocol=f"channels whose posterior mean's variance over images and positions exceeds {ACTIVE_VARIANCE}",
        ),
        "latent_mean": Score(value=latents.mean, unit="", protocol="over all elements of the latents"),
        "latent_std": Score(
            value=latents.std,
            unit="",
            protocol="of posterior samples about their mean over all elements, sqrt(E[mean^2 + std^2] - E[mean]^2)",
        ),
    }


def _code_scores(summary: ReconstructionSummary) -> dict[str, Score]:
    usage, perplexity, bits = summary.codebook_usage, summary.codebook_perplexity, summary.bits_per_dim
    assert usage is not None
    assert perplexity is not None
    assert bits is not None
    how = "entropy of the codes over all places of all images"
    return {
        "bits_per_dim": Score(value=bits, unit="bits/element", protocol=f"{how}, over the image's C·H·W"),
        "codebook_usage": Score(
            value=usage, unit=f"of {summary.codebook_size}", protocol="part of the codes that occur in any image"
        ),
        "codebook_perplexity": Score(value=perplexity, unit="codes", protocol=f"exp({how})"),
    }


def _set_scores(measurement: Measurement, *, protocol: Protocol) -> dict[str, Score]:
    distances, features = measurement.distances, protocol.set_features
    assert distances is not None
    assert features is not None
    num_images = measurement.summary.num_images
    shared = f"reconstructions against the {num_images} originals, cropped alike; {features.protocol}{protocol.seen}"
    few = "" if num_images >= SUBSET_SIZE else f" (fewer than the published {SUBSET_SIZE}, so biased downwards)"

    def subsets(distance: KernelDistance, kind: str) -> str:
        return (
            f"mean of {distance.num_subsets} {kind} subsets of at most {distance.subset_size} images "
            f"(their std {distance.std:.3g})"
        )

    scores = {
        f"rkid_{features.name}": Score(
            value=distances.kid.value,
            unit="",
            protocol=f"unbiased cubic-kernel MMD^2 as torch-fidelity computes it, {subsets(distances.kid, 'random')}"
            f"{few}; {shared}; {protocol.pictures}",
        ),
        f"rkid_paired_{features.name}": Score(
            value=distances.paired_kid.value,
            unit="",
            protocol=f"unbiased cubic-kernel MMD^2 without the pairs (original, own reconstruction), "
            f"{subsets(distances.paired_kid, 'disjoint')}; {shared}; {protocol.pictures}",
        ),
    }
    if distances.fid is not None:
        scores[f"rfid_{features.name}"] = Score(
            value=distances.fid,
            unit="",
            protocol=f"Frechet distance, biased upwards by few images; {shared}; {protocol.pictures}",
        )
    return scores


def channel_figures(summary: ImageChannelSummary | None, *, protocol: Protocol) -> dict[str, list[float]] | None:
    """Return figures of each image channel, values in the images' own units; None where there are none."""
    if summary is None:
        return None
    count = len(summary.psnr)
    lows, highs = ([*(protocol.value_range or (0, 255))][end::2] for end in (0, 1))
    ranges = [(lows[i % len(lows)], highs[i % len(highs)]) for i in range(count)]
    return {
        "psnr": summary.psnr,
        "mean": [low + mean / 255 * (high - low) for mean, (low, high) in zip(summary.mean, ranges, strict=True)],
        "std": [std / 255 * (high - low) for std, (low, high) in zip(summary.std, ranges, strict=True)],
    }


def package_versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on, of those installed."""
    versions = {"ldm-vae": ldm_vae.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
