"""How far latents are from the prior N(0, I): whether decoding standard normal noise gives pictures at all.

Pictures are drawn from a VAE by decoding samples of the prior (Kingma & Welling 2014), which needs that the latents of
pictures follow it. Autoencoders for latent diffusion are trained with so little weight on the prior that theirs don't.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_vae.exploring.known import KnownLatents
from ldm_vae.system.float64 import float64_tensor, float64_zeros, in_float64

REAL_PRIOR = 0.1
"""Nats a latent element. Latents that are measured to be at least so far from the prior are taken not to follow it; a
channel of standard deviation 0.7 or 1.4, or whose neighbours correlate by 0.45, is about so far."""


@dataclass(frozen=True, kw_only=True)
class PriorGap:
    """What the moments of all latents together say of KL(q(z) ‖ N(0, I)); lists have a number a channel."""

    nats: float
    """Lower bound of it, in nats a latent element."""
    channel_mean: list[float]
    channel_std: list[float]
    """Of samples of the posteriors."""
    neighbour_correlation: list[float]
    """Of latent pixels beside or below each other, whichever is larger in size."""

    @property
    def follows_prior(self) -> bool:
        """Whether the prior is taken for real."""
        return self.nats <= REAL_PRIOR

    def to_json(self) -> dict[str, Any]:
        """Return it for explore.json."""
        return {
            "nats_per_element_at_least": self.nats,
            "taken_for_real_up_to": REAL_PRIOR,
            "channel_mean": self.channel_mean,
            "channel_std": self.channel_std,
            "neighbour_correlation": self.neighbour_correlation,
        }


def measure_gap(known: KnownLatents) -> PriorGap:
    """Measure how far latents are from the prior, at least.

    Of all distributions with the same means and covariances the Gaussian is nearest to N(0, I), since it has the
    largest entropy; of all Gaussians with the same covariances between neighbours along a row, the one in which
    nothing else correlates. So KL(q(z) ‖ N(0, I)) is at least, an element of a channel with mean m, standard deviation
    s and correlation r of neighbours, (m² + s² - 1) / 2 - ln s - ln(1 - r²) / 2, the last for those pixels that have a
    neighbour. Moments are taken over all positions, of samples of the posteriors, without drawing any.
    """
    channels, height, width = known.shape
    count = len(known) * height * width
    first, square, variance = (float64_zeros(channels, device="cpu") for _ in range(3))
    for mean, std in known.parts():
        means = in_float64(mean)
        first += means.sum(dim=(0, 2, 3))
        square += means.square().sum(dim=(0, 2, 3))
        variance += in_float64(std).square().sum(dim=(0, 2, 3))
    centre = first / count
    total = (square + variance) / count - centre.square()
    products = float64_zeros(2, channels, device="cpu")
    for mean, _ in known.parts():
        means = in_float64(mean) - centre[:, None, None]
        products[0] += (means[..., :-1] * means[..., 1:]).sum(dim=(0, 2, 3))
        products[1] += (means[..., :-1, :] * means[..., 1:, :]).sum(dim=(0, 2, 3))
    pairs = float64_tensor([height * (width - 1), width * (height - 1)])[:, None] * len(known)
    correlation = (products / pairs.clamp(min=1) / total.clamp(min=1e-30)).clamp(-0.999999, 0.999999)
    shared = -(pairs / count) * torch.log1p(-correlation.square()) / 2
    own = (centre.square() + total - 1) / 2 - total.clamp(min=1e-30).log() / 2
    return PriorGap(
        nats=float((own + shared.max(dim=0).values).mean()),
        channel_mean=centre.tolist(),
        channel_std=total.clamp(min=0).sqrt().tolist(),
        neighbour_correlation=_larger(correlation),
    )


def _larger(correlation: Tensor) -> list[float]:
    rows, columns = correlation.tolist()
    return [a if math.fabs(a) >= math.fabs(b) else b for a, b in zip(rows, columns, strict=True)]
