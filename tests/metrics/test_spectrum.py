"""Spectra against scipy's cosine transform, and against noise whose spectrum is known."""

import math

import pytest
import torch
from scipy.fft import dctn
from torch import nn

from ldm_vae.metrics.spectrum import cosine_power, high_share, radial_power, radius, spectral_slope, spectrum_distance


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur by a Gaussian, as a product with the spectrum."""
    h, w = maps.shape[-2:]
    frequency = torch.fft.fftfreq(h)[:, None].square() + torch.fft.fftfreq(w)[None].square()
    return torch.fft.ifft2(torch.fft.fft2(maps) * torch.exp(-2 * (math.pi * sigma) ** 2 * frequency)).real


def test_power_is_that_of_the_orthonormal_transform() -> None:
    maps = noise(2, 3, 8, 12)
    expected = torch.from_numpy(dctn(maps.numpy(), axes=(-2, -1), norm="ortho")).square()
    expected[..., 0, 0] = 0
    assert torch.allclose(cosine_power(maps), expected, atol=1e-12)
    deviations = (maps - maps.mean(dim=(-2, -1), keepdim=True)).square().sum(dim=(-2, -1))
    assert torch.allclose(cosine_power(maps).sum(dim=(-2, -1)), deviations)


def test_rings_hold_each_frequency_once() -> None:
    power = torch.rand(2, 16, 16, dtype=torch.float64)
    power[:, 0, 0] = 0
    binned = radial_power(power, num_bins=4)
    r = radius(16, 16) / math.sqrt(2)
    for k in range(4):
        ring = (r >= k / 4) & (r < (k + 1) / 4)
        ring[0, 0] = False
        assert torch.allclose(binned[:, k], power[:, ring].mean(dim=1))


def test_noise_and_smooth_noise() -> None:
    white = noise(16, 4, 32, 32)
    power = cosine_power(white).mean(dim=0)
    assert high_share(power).mean().item() == pytest.approx(1 - math.pi / 16, abs=0.02)
    assert spectral_slope(radial_power(power).mean(dim=0)) == pytest.approx(0, abs=0.05)
    power = cosine_power(smooth(white, sigma=2)).mean(dim=0)
    assert high_share(power).mean().item() < 0.05
    assert spectral_slope(radial_power(power).mean(dim=0)) < -2


def test_slope_is_the_exponent_of_a_power_law() -> None:
    middle = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    assert spectral_slope(3 * middle**-1.7) == pytest.approx(-1.7)
    assert spectral_slope(torch.where(torch.arange(16) % 3 == 0, torch.nan, 3 * middle**-1.7)) == pytest.approx(-1.7)
    assert math.isnan(spectral_slope(torch.full((16,), torch.nan)))


def test_distance_is_nothing_for_the_target_itself_and_grows_with_noise() -> None:
    images = smooth(noise(8, 3, 64, 64), sigma=6)
    images = images / images.std()
    reduced = nn.functional.interpolate(images.float(), (16, 16), mode="bicubic", antialias=True)
    assert spectrum_distance(reduced, images, flatten=0).abs().max().item() < 1e-12
    mixed = [(1 - share) * reduced / reduced.std() + share * noise(8, 3, 16, 16).float() for share in (0.0, 0.3, 1.0)]
    distances = [spectrum_distance(each, images, flatten=0).mean().item() for each in mixed]
    assert distances[0] < distances[1] < distances[2]
