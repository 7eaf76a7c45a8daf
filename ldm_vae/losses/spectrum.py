"""Spectrum matching: latents with the spectrum of their images, flattened ("Spectrum Matching", 2603.14645)."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.system.float64 import in_float64

BINS = 16
EPSILON = 1e-8


def spectrum_divergence(latents: Tensor, images: Tensor, *, flattening: float) -> Tensor:
    """Mean over images of KL(t || s), s the latents' radial spectrum, t that of the image at the latents' size.

    A spectrum is log(1 + mean power) in 16 rings of frequencies, divided by its sum; the power is that of the
    orthonormal DCT-II, averaged over channels, without the mean. The image is scaled by antialiased bicubic
    interpolation, and its power is multiplied by (frequency / largest frequency)^flattening.

    Args:
        latents: [B, c, h, w]; the gradient flows to them alone.
        images: [B, C, H, W] in [-1, 1].
        flattening: 1 makes the target's power, about 1/f², one that falls as 1/f.
    """
    height, width = latents.shape[-2:]
    with torch.no_grad():
        small = F.interpolate(
            images.float(), size=(height, width), mode="bicubic", align_corners=False, antialias=True
        )
        target = _spectrum(small, flattening=flattening)
    spectrum = _spectrum(latents.float(), flattening=0.0)
    return (target * (torch.log(target + EPSILON) - torch.log(spectrum + EPSILON))).sum(1).mean()


def _spectrum(pictures: Tensor, *, flattening: float) -> Tensor:
    """[B, 16], each row of sum 1."""
    height, width = pictures.shape[-2:]
    coefficients = cosines(height, pictures.device) @ pictures @ cosines(width, pictures.device).T
    rings, frequency = _rings(height, width, pictures.device)
    power = coefficients.square().mean(1) * frequency**flattening
    binned = torch.log1p(power.flatten(1) @ rings.T) + EPSILON
    return binned / binned.sum(1, keepdim=True)


@functools.lru_cache(maxsize=64)
def cosines(size: int, device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II, [size, size], a row a frequency."""
    position = in_float64(torch.arange(size))
    matrix = torch.cos(math.pi / size * position[:, None] * (position + 0.5)) * math.sqrt(2 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix.float().to(device)


@functools.lru_cache(maxsize=64)
def _rings(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[16, height * width], what a ring's power is the mean of, without the DC; and [height, width], frequencies."""
    radius = torch.hypot(torch.arange(height)[:, None].float(), torch.arange(width)[None].float())
    relative = radius / radius.max().clamp(min=1.0)
    ring = (relative * BINS).floor().clamp(max=BINS - 1)
    counted = (torch.arange(BINS)[:, None, None] == ring) & (radius > 0)
    means = counted.flatten(1).float() / counted.flatten(1).sum(1, keepdim=True).clamp(min=1)
    return means.to(device), relative.to(device)
