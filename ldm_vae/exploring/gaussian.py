"""Latents drawn from what is fitted to known ones: a Gaussian, or the frequencies of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ldm_vae.config.rules import require
from ldm_vae.exploring.known import KnownLatents
from ldm_vae.exploring.prior import measure_gap
from ldm_vae.models.bottlenecks.quantised import Quantised
from ldm_vae.system.float64 import float64_tensor, float64_zeros, in_float64
from ldm_vae.system.randomness import sample_rng

_STREAM = "explore/sample"


class Draw(Protocol):
    """Draws latents by their numbers."""

    def __call__(self, numbers: Sequence[int], *, seed: int) -> Tensor:
        """Return latents [n, c, h, w], float32; number j is a function of (seed, j) and of what was fitted."""


def normal(numbers: Sequence[int], shape: Sequence[int], *, seed: int) -> Tensor:
    """Return standard normal numbers [n, *shape], float32, of which row j is a function of (seed, j)."""
    rngs = [sample_rng(j, seed=seed, stream=_STREAM) for j in numbers]
    return torch.from_numpy(np.stack([rng.standard_normal(tuple(shape), dtype=np.float32) for rng in rngs]))


class PriorDraw:
    """Draws from N(0, I).

    Args:
        shape: Of a latent: c, h, w.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape

    def __call__(self, numbers: Sequence[int], *, seed: int) -> Tensor:
        """Draw, as `Draw` says."""
        return normal(numbers, self._shape, seed=seed)


class ChannelGaussian:
    """Draws elements that are independent, with mean and standard deviation of their channel's posterior samples."""

    def __init__(self, known: KnownLatents) -> None:
        moments = measure_gap(known)
        self._shape = known.shape
        self._mean, self._std = (
            float64_tensor(values).float()[:, None, None] for values in (moments.channel_mean, moments.channel_std)
        )

    def __call__(self, numbers: Sequence[int], *, seed: int) -> Tensor:
        """Draw, as `Draw` says."""
        return self._mean + self._std * normal(numbers, self._shape, seed=seed)


class FullGaussian:
    """Draws from the Gaussian with the mean and the covariance of all elements of posterior samples.

    With posteriors N(m_i, diag s_i²) of n rows, z = μ + Σ_i ε_i (m_i - μ) / √n + √(Σ_i s_i² / n) ε' with standard
    normal ε and ε' has just that: covariance Σ_i (m_i - μ)(m_i - μ)ᵀ / n + diag(Σ_i s_i² / n), the law of total
    variance. No matrix is made, so that any number of elements and of rows will do; each draw reads all rows.
    """

    def __init__(self, known: KnownLatents) -> None:
        require(len(known) > 1, "the covariance of a single latent isn't known; give more, or <covariance> channel")
        self._known = known
        self._mean = float64_zeros(*known.shape, device="cpu")
        self._variance = float64_zeros(*known.shape, device="cpu")
        for mean, std in known.parts():
            self._mean += in_float64(mean).sum(dim=0) / len(known)
            self._variance += in_float64(std).square().sum(dim=0) / len(known)

    def __call__(self, numbers: Sequence[int], *, seed: int) -> Tensor:
        """Draw, as `Draw` says."""
        rngs = [sample_rng(j, seed=seed, stream=_STREAM) for j in numbers]
        drawn = self._mean.expand(len(numbers), *self._known.shape).clone()
        for mean, _ in self._known.parts():
            weights = torch.from_numpy(np.stack([rng.standard_normal(len(mean)) for rng in rngs]))
            away = (in_float64(mean) - self._mean).flatten(1)
            drawn += (weights @ away).view_as(drawn) / len(self._known) ** 0.5
        noise = np.stack([rng.standard_normal(self._known.shape) for rng in rngs])
        return (drawn + self._variance.sqrt() * torch.from_numpy(noise)).float()


class CodeFrequencies:
    """Draws a code at each position, independently, by how often it is used at any.

    Args:
        known: Latents that are codes.
        bottleneck: The codebook.
    """

    def __init__(self, known: KnownLatents, bottleneck: Quantised) -> None:
        self._shape = known.shape
        self._codes = bottleneck.codes.cpu()
        self.counts = torch.zeros(len(self._codes), dtype=torch.int64)
        for mean, _ in known.parts():
            vectors = mean.permute(0, 2, 3, 1).flatten(0, 2).to(bottleneck.codes.device)
            self.counts += torch.bincount(bottleneck.nearest(vectors).cpu(), minlength=len(self.counts))

    def __call__(self, numbers: Sequence[int], *, seed: int) -> Tensor:
        """Draw, as `Draw` says."""
        share = self.counts.numpy() / int(self.counts.sum())
        _, height, width = self._shape
        drawn = [
            sample_rng(j, seed=seed, stream=_STREAM).choice(len(share), size=(height, width), p=share) for j in numbers
        ]
        return self._codes[torch.from_numpy(np.stack(drawn))].permute(0, 3, 1, 2).contiguous()
