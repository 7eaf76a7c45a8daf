"""What is fitted to latents is drawn: moments and frequencies of many draws beside those of plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ldm_vae.exploring import known as known_latents
from ldm_vae.exploring.gaussian import ChannelGaussian, CodeFrequencies, FullGaussian
from ldm_vae.exploring.known import KnownLatents, tensor_latents
from ldm_vae.models.bottlenecks.quantised import VectorQuantised
from ldm_vae.probing.latents import EncodedMoments

DRAWS = 3000
SHAPE = (2, 3, 2)
SIZE = 12


@pytest.fixture(scope="module")
def posteriors() -> tuple[np.ndarray, np.ndarray]:
    """Means that are correlated and far from 0, and deviations that differ between elements, float64 [n, d]."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(25, SIZE)) @ rng.normal(size=(SIZE, SIZE)) + np.arange(SIZE)
    std = np.exp(rng.normal(size=(25, SIZE)))
    return mean.astype(np.float32).astype(float), std.astype(np.float32).astype(float)


def known(mean: np.ndarray, std: np.ndarray) -> KnownLatents:
    files = [values.reshape(-1, *SHAPE).astype(np.float32) for values in (mean, std)]
    moments = EncodedMoments(mean=files[0], std=files[1], rows=np.arange(len(mean)))
    return KnownLatents(moments=moments, source="here")


def assert_moments(drawn: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Draws [n, d] have a Gaussian's moments, up to five standard errors of each."""
    count, variance = len(drawn), np.diag(covariance)
    assert (np.abs(drawn.mean(axis=0) - mean) < 5 * np.sqrt(variance / count)).all()
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    assert (np.abs(np.cov(drawn.T, bias=True) - covariance) < 5 * error).all()


def test_full_gaussian_has_the_mean_and_covariance_of_posterior_samples(
    posteriors: tuple[np.ndarray, np.ndarray],
) -> None:
    mean, std = posteriors
    drawn = FullGaussian(known(mean, std))(range(DRAWS), seed=0).flatten(1).numpy().astype(float)
    assert_moments(drawn, mean.mean(axis=0), np.cov(mean.T, bias=True) + np.diag((std**2).mean(axis=0)))


def test_channel_gaussian_has_each_channels_moments_and_independent_elements(
    posteriors: tuple[np.ndarray, np.ndarray],
) -> None:
    mean, std = posteriors
    drawn = ChannelGaussian(known(mean, std))(range(DRAWS), seed=0).flatten(1).numpy().astype(float)
    positions = SIZE // SHAPE[0]
    by_channel = mean.reshape(-1, SHAPE[0], positions)
    variance = by_channel.var(axis=(0, 2)) + (std.reshape(by_channel.shape) ** 2).mean(axis=(0, 2))
    expected = np.diag(np.repeat(variance, positions))
    assert_moments(drawn, np.repeat(by_channel.mean(axis=(0, 2)), positions), expected)


def test_a_draw_is_a_function_of_seed_and_number(
    posteriors: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for fitted in (FullGaussian(known(*posteriors)), ChannelGaussian(known(*posteriors))):
        together, again, other = fitted(range(4), seed=7), fitted([3, 1], seed=7), fitted(range(4), seed=8)
        torch.testing.assert_close(again, together[[3, 1]], rtol=0, atol=0)
        assert not torch.equal(other, together)
        assert len({tuple(row.flatten().tolist()) for row in together}) == 4
    whole = FullGaussian(known(*posteriors))(range(3), seed=7)
    monkeypatch.setattr(known_latents, "_ROWS", 4)
    torch.testing.assert_close(FullGaussian(known(*posteriors))(range(3), seed=7), whole)


def test_a_single_latent_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="covariance of a single latent"):
        FullGaussian(tensor_latents(torch.zeros(1, *SHAPE)))


def test_codes_are_drawn_by_how_often_they_are_used() -> None:
    codebook = nn.Embedding(5, 2)
    bottleneck = VectorQuantised(codebook)
    share = np.array([0.5, 0.3, 0.0, 0.15, 0.05])
    numbers = torch.from_numpy(np.repeat(np.arange(5), (share * 240).astype(int)))
    used = bottleneck.codes[numbers].view(6, 40, 1, 2).permute(0, 3, 1, 2)
    fitted = CodeFrequencies(tensor_latents(used), bottleneck)
    assert fitted.counts.tolist() == [120, 72, 0, 36, 12]
    drawn = fitted(range(100), seed=0)
    assert drawn.shape == (100, 2, 40, 1)
    counts = torch.bincount(bottleneck.nearest(drawn.permute(0, 2, 3, 1).flatten(0, 2)), minlength=5).numpy() / 4000
    assert counts[2] == 0
    assert (np.abs(counts - share) <= 5 * np.sqrt(share * (1 - share) / 4000)).all()
    assert (drawn.permute(0, 2, 3, 1).unsqueeze(3) == bottleneck.codes).all(dim=4).any(dim=3).all()
