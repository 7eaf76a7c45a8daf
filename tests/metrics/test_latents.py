"""Latent statistics against those of drawn samples."""

import pytest
import torch

from ldm_vae.metrics.latents import LatentMetrics
from tests.metrics.batches import make_batch


def test_latent_statistics_are_those_of_drawn_samples() -> None:
    _, _, mean, std = make_batch(num_images=8)
    mean[:, 1] += 2
    statistics = LatentMetrics(latent_channels=4)
    statistics.update(mean, std)
    summary = statistics.compute()
    samples = torch.cat([mean + std * torch.randn(mean.shape) for _ in range(2000)]).double()
    assert summary.std == pytest.approx(samples.std().item(), rel=2e-3)
    assert summary.mean == pytest.approx(samples.mean().item(), rel=2e-3)
    assert summary.channel_std == pytest.approx(samples.std(dim=(0, 2, 3)).tolist(), rel=5e-3)
    assert summary.scaling_factor == 1 / summary.std
    normalised = (samples - summary.mean) * summary.scaling_factor
    assert normalised.std().item() == pytest.approx(1, abs=2e-3)


def test_only_channels_whose_mean_varies_are_active() -> None:
    mean = torch.randn(6, 3, 4, 4)
    mean[:, 1] = 7 + 0.05 * mean[:, 1]  # a far but constant mean tells nothing
    mean[:, 2] *= 0.2
    statistics = LatentMetrics(latent_channels=3)
    statistics.update(mean, torch.full_like(mean, 0.5))
    assert statistics.compute().active_channels == 2


def test_latents_without_a_posterior_have_no_divergence() -> None:
    latents = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    statistics = LatentMetrics(latent_channels=3)
    assert statistics.update(latents, None) is None
    summary = statistics.compute()
    assert summary.channel_kl is None
    assert summary.std == pytest.approx(latents.double().std(correction=0).item(), rel=1e-9)
