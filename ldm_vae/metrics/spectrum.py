"""How the power of pictures and latents is spread over spatial frequencies, by the discrete cosine transform.

A frequency is the radius r = sqrt((u/h)² + (v/w)²) of the coefficient (u, v) of a map of h x w. A wave along one side
at the Nyquist frequency has r = 1, and the corner has r = sqrt(2). The mean of a map (u = v = 0) is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_vae.system.float64 import in_float64

NUM_BINS = 16
HALF_NYQUIST = 0.5


def cosine_power(maps: Tensor) -> Tensor:
    """Return the squares of the orthonormal DCT-II of maps [..., h, w], float64, the one of the mean being 0.

    Without that one they add up to the squared deviations of a map from its mean (Parseval).
    """
    maps = in_float64(maps)
    rows, columns = (_cosine_matrix(side).to(maps.device) for side in maps.shape[-2:])
    power = (rows @ maps @ columns.T).square()
    power[..., 0, 0] = 0
    return power


def radial_power(power: Tensor, *, num_bins: int = NUM_BINS) -> Tensor:
    """Return the mean of `cosine_power` [..., h, w] in rings of equal width: [..., num_bins].

    Bin k holds r / sqrt(2) in [k, k + 1) / num_bins. A map of few frequencies may leave a bin empty, which is NaN.
    """
    h, w = power.shape[-2:]
    bins = (radius(h, w) / math.sqrt(2) * num_bins).long().clamp(max=num_bins - 1)
    bins[0, 0] = num_bins  # the mean belongs to none
    bins = bins.flatten().to(power.device)
    counts = torch.bincount(bins, minlength=num_bins + 1).to(power.dtype)
    sums = torch.zeros(*power.shape[:-2], num_bins + 1, dtype=power.dtype, device=power.device)
    sums.index_add_(-1, bins, power.flatten(-2))
    return (sums / counts)[..., :num_bins]


def radius(h: int, w: int) -> Tensor:
    """Return r of every coefficient of a map, [h, w] float64 on the CPU."""
    u, v = (in_float64(torch.arange(side)) / side for side in (h, w))
    return (u[:, None].square() + v[None].square()).sqrt()


def high_share(power: Tensor) -> Tensor:
    """Return the share of the power [..., h, w] beyond half the Nyquist frequency, [...].

    White noise has about 1 - pi/16, or 0.8.
    """
    high = radius(*power.shape[-2:]).to(power.device) > HALF_NYQUIST
    return (power * high).sum(dim=(-2, -1)) / power.sum(dim=(-2, -1))


def spectral_slope(binned: Tensor) -> float:
    """Return the slope of log power over log frequency, of what `radial_power` returns, [num_bins].

    Natural images have about -2 (Field 1987, "Relations between the statistics of natural images and the response
    properties of cortical cells"), white noise has 0.
    """
    there = binned.isfinite() & (binned > 0)
    if there.sum() < 2:
        return math.nan
    middle = (in_float64(torch.arange(len(binned))) + 0.5).log()[there]
    values = binned.cpu()[there].log()
    middle = middle - middle.mean()
    return ((middle * (values - values.mean())).sum() / middle.square().sum()).item()


def spectrum_distance(latents: Tensor, images: Tensor, *, flatten: float = 1.0, num_bins: int = NUM_BINS) -> Tensor:
    """Return KL(image's spectrum || latent's spectrum) of each pair, [B] float64, in nats.

    Encoding spectrum matching ("Spectrum Matching", arXiv 2603.14645): the power is averaged over channels, then over
    rings, log(1 + power) is normalised to sum 1. The image's power is multiplied by its frequency to the power
    `flatten` before. Unlike the published loss the image is reduced with antialiasing instead of a blur, and both
    are to be scaled to unit standard deviation, so that the measure doesn't depend on a latent's scale.

    Args:
        latents: [B, c, h, w], of unit standard deviation.
        images: [B, C, H, W], of unit standard deviation.
        flatten: The paper's delta, by which 1/f² becomes 1/f^(2 - delta).
        num_bins: Rings.
    """
    reduced = nn.functional.interpolate(
        images.float(), latents.shape[-2:], mode="bicubic", align_corners=False, antialias=True
    )
    source, target = (radial_power(cosine_power(maps).mean(dim=1), num_bins=num_bins) for maps in (latents, reduced))
    frequency = (in_float64(torch.arange(num_bins, device=target.device)) + 0.5) / num_bins
    source, target = (_distribution(power) for power in (source, target * frequency**flatten))
    terms = target * (target.clamp(min=1e-12).log() - source.clamp(min=1e-12).log())
    return terms.nansum(dim=1)


def _distribution(power: Tensor) -> Tensor:
    values = power.log1p()
    return values / values.nansum(dim=1, keepdim=True)


def _cosine_matrix(side: int) -> Tensor:
    """The orthonormal DCT-II, [side, side]: row u is the wave of frequency u."""
    positions = in_float64(torch.arange(side))
    matrix = torch.cos(math.pi / side * (positions[None] + 0.5) * positions[:, None]) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix
