"""How far latents are from the prior: the exact divergence where it is known, and never more than it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ldm_vae.exploring.known import KnownLatents
from ldm_vae.exploring.prior import REAL_PRIOR, measure_gap
from ldm_vae.probing.latents import EncodedMoments

SIDE, COUNT = 8, 300


def known(mean: np.ndarray, std: np.ndarray | float = 0.0) -> KnownLatents:
    spread = np.broadcast_to(np.float32(std), mean.shape).copy()
    moments = EncodedMoments(mean=mean.astype(np.float32), std=spread, rows=np.arange(len(mean)))
    return KnownLatents(moments=moments, source="here")


def chains(rng: np.random.Generator, *, correlation: float, axis: int) -> np.ndarray:
    """Return [COUNT, 1, SIDE, SIDE] of unit variance whose rows, or columns, are Markov chains."""
    noise = np.moveaxis(rng.normal(size=(COUNT, 1, SIDE, SIDE)), axis, -1)
    for i in range(1, SIDE):
        noise[..., i] = correlation * noise[..., i - 1] + math.sqrt(1 - correlation**2) * noise[..., i]
    return np.moveaxis(noise, -1, axis)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(("shift", "scale", "correlation"), [(0.0, 1.0, 0.0), (0.5, 2.0, 0.0), (0.3, 0.5, -0.8)])
def test_gap_of_gaussian_chains_is_their_divergence(axis: int, shift: float, scale: float, correlation: float) -> None:
    latents = shift + scale * chains(np.random.default_rng(0), correlation=correlation, axis=axis)
    gap = measure_gap(known(latents))
    exact = (shift**2 + scale**2 - 1) / 2 - math.log(scale)
    exact -= (SIDE - 1) / SIDE * math.log(1 - correlation**2) / 2
    assert gap.nats == pytest.approx(exact, rel=0.05, abs=0.003)
    assert gap.follows_prior == (exact <= REAL_PRIOR)
    assert gap.channel_mean == pytest.approx([shift], abs=0.03)
    assert gap.channel_std == pytest.approx([scale], rel=0.02)
    assert gap.neighbour_correlation == pytest.approx([correlation], abs=0.03)


def test_posteriors_count_by_their_samples() -> None:
    rng = np.random.default_rng(0)
    mean = math.sqrt(0.3) * rng.normal(size=(COUNT, 3, SIDE, SIDE))
    assert measure_gap(known(mean, math.sqrt(0.7))).nats < 0.002  # samples are N(0, 1)
    assert measure_gap(known(mean, 0.0)).nats > REAL_PRIOR
    assert measure_gap(known(np.zeros((2, 3, SIDE, SIDE)), 1.0)).nats == pytest.approx(0, abs=1e-12)


def test_gap_is_a_lower_bound_for_other_distributions() -> None:
    """Elements of +1 and -1 have the prior's moments; no sample of N(0, 1) is one of them."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(COUNT, 1, SIDE, SIDE))
    assert 0 <= measure_gap(known(signs)).nats < 0.01
