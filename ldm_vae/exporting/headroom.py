"""Whether an autoencoder may run in 16-bit types: activations against the type's limit, error, and a repair."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.metrics.reconstruction import psnr
from ldm_vae.models.families.family import Family
from ldm_vae.models.precision import DTYPES
from ldm_vae.models.rescaling import FLOAT16_LIMIT, MARGIN, recorded_magnitudes, rescale_activations
from ldm_vae.system.float64 import in_float64
from ldm_vae.system.pixels import LEVELS_PER_UNIT, PICTURES, Span, as_pictures, to_pixels

ONE_LEVEL_PSNR = 20 * math.log10(255)
"""PSNR of a root mean square error of one 8-bit level, 48.1 dB."""
_HALF_TYPES = ("float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class HalfPrecisionError:
    """What running weights and activations in a 16-bit type does to the reconstruction, against float32's."""

    finite: bool
    psnr: float
    """Mean over images, dB, of 8-bit pictures; NaN where it isn't finite."""
    max_error: float
    """Largest difference of a pixel, of 255 levels, before rounding."""
    latent_error: float
    """Root mean square error of the posterior mean over the mean's standard deviation."""


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """Magnitudes in float32 and errors in 16-bit types over `num_images` images, of encoding and decoding the mean."""

    num_images: int
    device: str
    magnitudes: dict[str, float]
    """Largest magnitude that each layer puts out, in the order of the forward."""
    errors: dict[str, HalfPrecisionError]
    """For `float16` and `bfloat16`, computed in that type on `device`."""

    def layers(self, network: str) -> list[tuple[str, float]]:
        """Layers of `encoder` or `decoder` (quant convs counted in) and their magnitudes, the largest first."""
        layers = [(name, value) for name, value in self.magnitudes.items() if _network(name) == network]
        return sorted(layers, key=lambda layer: -_nan_is_infinite(layer[1]))

    def largest(self, network: str) -> tuple[str, float]:
        """Layer and magnitude of the largest activation in `encoder` or `decoder`."""
        return self.layers(network)[0]

    @property
    def networks(self) -> list[str]:
        """Which of `encoder` and `decoder` were run."""
        return [network for network in ("encoder", "decoder") if self.layers(network)]

    @property
    def float16_has_room(self) -> bool:
        """Whether `MARGIN` times the largest magnitude is below 65504."""
        largest = max(_nan_is_infinite(self.largest(network)[1]) for network in self.networks)
        return largest * MARGIN <= FLOAT16_LIMIT

    @property
    def float16_is_safe(self) -> bool:
        """All finite, with room below float16's limit, and an error of less than one 8-bit level."""
        error = self.errors["float16"]
        return error.finite and self.float16_has_room and error.psnr >= ONE_LEVEL_PSNR

    def why_float16_is_unsafe(self) -> str:
        """The first of the reasons, as a clause."""
        layer, magnitude = max((self.largest(network) for network in self.networks), key=lambda layer: layer[1])
        if not magnitude * MARGIN <= FLOAT16_LIMIT:
            return f"{layer} reaches {magnitude:.4g} of {FLOAT16_LIMIT:.0f}"
        error = self.errors["float16"]
        if not error.finite:
            return "its reconstructions aren't finite"
        return f"its reconstructions are at {error.psnr:.1f} dB from float32's"


def measure_precision(family: Family, batches: Iterable[Tensor], *, span: Span = PICTURES) -> PrecisionReport:
    """Encode and decode batches [B, C, H, W] in float32 and both 16-bit types, on the model's device.

    Args:
        family: The autoencoder.
        batches: The images.
        span: The values of black and white in them.

    Raises:
        ValueError: There is no image.
    """
    halves = {name: copy.deepcopy(family).to(DTYPES[name]) for name in _HALF_TYPES}
    magnitudes: dict[str, Tensor] = {}
    compared: dict[str, list[_Comparison]] = {name: [] for name in halves}
    for images in batches:
        with recorded_magnitudes(family, magnitudes):
            mean, reconstruction = _reconstruct(family, images)
        for name, half in halves.items():
            half_mean, half_reconstruction = _reconstruct(half, images)
            compared[name].append(_Comparison.of(mean, reconstruction, half_mean, half_reconstruction, span))
    if not magnitudes:
        raise ValueError("no images to measure activations on: every one was unreadable, or there were none")
    return PrecisionReport(
        num_images=sum(len(comparison.psnr) for comparison in compared["float16"]),
        device=family.device.type,
        magnitudes={name: magnitude.item() for name, magnitude in magnitudes.items()},
        errors={name: _summarise(comparisons) for name, comparisons in compared.items()},
    )


def _reconstruct(family: Family, images: Tensor) -> tuple[Tensor, Tensor]:
    dtype = family.dtype if family.has_encoder else torch.float32  # which a teacher keeps
    reconstruction = family.reconstruct(images.to(family.device, dtype))
    return reconstruction.mean, reconstruction.images


@dataclass(frozen=True)
class _Comparison:
    psnr: Tensor
    max_error: float
    squared_error: float
    latent: Tensor
    finite: bool

    @classmethod
    def of(
        cls,
        mean: Tensor,
        reconstruction: Tensor,
        half_mean: Tensor,
        half_reconstruction: Tensor,
        span: Span,
    ) -> _Comparison:
        reconstruction, half_reconstruction = (
            as_pictures(values, span) for values in (reconstruction, half_reconstruction)
        )
        return cls(
            psnr=psnr(to_pixels(reconstruction), to_pixels(half_reconstruction)).cpu(),
            max_error=(reconstruction - half_reconstruction).abs().max().item() * LEVELS_PER_UNIT,
            squared_error=in_float64(mean - half_mean).square().sum().item(),
            latent=in_float64(mean).cpu(),
            finite=bool(half_mean.isfinite().all() and half_reconstruction.isfinite().all()),
        )


def _summarise(comparisons: Sequence[_Comparison]) -> HalfPrecisionError:
    latents = torch.cat([comparison.latent.flatten() for comparison in comparisons])
    squared_error = sum(comparison.squared_error for comparison in comparisons) / latents.numel()
    return HalfPrecisionError(
        finite=all(comparison.finite for comparison in comparisons),
        psnr=torch.cat([comparison.psnr for comparison in comparisons]).mean().item(),
        max_error=max(comparison.max_error for comparison in comparisons),
        latent_error=math.sqrt(squared_error) / latents.std().item(),
    )


def _network(layer: str) -> str:
    return "encoder" if layer.startswith(("encoder.", "quant_conv")) else "decoder"


def _nan_is_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def fit_float16(
    family: Family, batches: Sequence[Tensor], *, repair: bool, span: Span = PICTURES
) -> tuple[Family, PrecisionReport, str]:
    """Measure an autoencoder and, where float16 isn't safe, whether rescaling its weights makes it so.

    Args:
        family: The autoencoder, on the device to measure on.
        batches: Images [B, C, H, W] to measure on.
        repair: Whether to take the rescaled autoencoder, where that helps and leaves the reconstruction as it is.
        span: The values of black and white in them.

    Returns:
        The autoencoder to use, its report, and a sentence on float16.
    """
    report = measure_precision(family, batches, span=span)
    if report.float16_is_safe:
        return family, report, "float16 is safe on the measured images."
    unsafe = f"float16 is not safe: {report.why_float16_is_unsafe()}."
    if report.float16_has_room:
        codes = "" if family.codebook_size is None else " Rounded, some places take another code."
        return family, report, f"{unsafe}{codes} No activation is too large, so rescaling its weights would not help."
    rescaled = rescale_activations(family, report.magnitudes) if family.is_residual else None
    if rescaled is None:
        return family, report, f"{unsafe} No exact rescaling of weights helps: no norm follows what is too large."
    rescaled_report = measure_precision(rescaled, batches, span=span)
    difference = max(
        (_reconstruct(family, images)[1] - _reconstruct(rescaled, images)[1]).abs().max().item()
        * LEVELS_PER_UNIT
        * 2
        / (span[1] - span[0])
        for images in batches
    )
    if not rescaled_report.float16_is_safe or not difference < 0.5:
        return family, report, f"{unsafe} Rescaling its weights would not make it safe without changing pictures."
    change = f"(largest change of a pixel: {difference:.2g} of 255)"
    if not repair:
        return (
            family,
            report,
            f"{unsafe} Rescaling its weights would make it safe {change}: export with --repair.",
        )
    safe = f"float16 is safe on the measured images, weights having been rescaled by powers of two {change}."
    return rescaled, rescaled_report, safe
