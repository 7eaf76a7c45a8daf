"""Spectrum matching against the formula written plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F

from ldm_vae.losses.spectrum import spectrum_divergence


def plain_spectrum(picture: np.ndarray, *, flattening: float) -> np.ndarray:
    """Of [C, h, w], a coefficient at a time."""
    centred = picture - picture.mean(axis=(1, 2), keepdims=True)
    power = (scipy.fft.dctn(centred, axes=(1, 2), norm="ortho") ** 2).mean(0)
    height, width = power.shape
    largest = math.hypot(height - 1, width - 1)
    rings: list[list[float]] = [[] for _ in range(16)]
    for u in range(height):
        for v in range(width):
            if u or v:
                part = math.hypot(u, v) / largest
                rings[min(15, int(part * 16))].append(power[u, v] * part**flattening)
    values = np.array([math.log1p(np.mean(ring)) if ring else 0.0 for ring in rings])
    return values / values.sum()


@pytest.mark.parametrize("flattening", [0.0, 1.0])
@pytest.mark.parametrize("side", [8, 16])
def test_it_is_the_plain_formula(side: int, flattening: float) -> None:
    rng = torch.Generator().manual_seed(0)
    images, latents = torch.rand(3, 3, 64, 64, generator=rng) * 2 - 1, torch.randn(3, 4, side, side, generator=rng)
    small = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
    expected = []
    for image, latent in zip(small.double().numpy(), latents.double().numpy(), strict=True):
        t, s = plain_spectrum(image, flattening=flattening), plain_spectrum(latent, flattening=0.0)
        expected.append(sum(a * math.log(a / b) for a, b in zip(t, s, strict=True) if a > 0))
    value = spectrum_divergence(latents, images, flattening=flattening)
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_it_is_zero_for_the_images_own_spectrum_whatever_the_scale_of_the_mean() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert abs(spectrum_divergence(images + 5.0, images, flattening=0.0).item()) < 1e-5
    white = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    smooth = F.avg_pool2d(images.repeat_interleave(4, -1).repeat_interleave(4, -2), 9, stride=1, padding=4)
    divergence = spectrum_divergence(white, smooth, flattening=1.0)
    divergence.backward()
    assert divergence.item() > 0.1
    assert white.grad is not None
    assert white.grad.abs().max() > 0
