"""Correlation and information of latent channels, for Gaussians."""

import math

import pytest
import torch

from ldm_vae.metrics.channels import effective_channels, information_bound, mean_correlation, outer_products


def test_outer_products_are_sums_over_images_and_positions() -> None:
    latents = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.allclose(outer_products(latents), sum(row[:, None] * row[None] for row in rows))  # type: ignore[arg-type]


def test_correlation_and_rank_of_independent_and_equal_channels() -> None:
    assert mean_correlation(torch.diag(torch.tensor([1.0, 4.0, 9.0]))) == 0
    assert mean_correlation(torch.ones(3, 3)) == pytest.approx(1)
    assert mean_correlation(torch.tensor([[1.0, -0.5], [-0.5, 1.0]])) == pytest.approx(0.5)
    assert mean_correlation(torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == 0  # a channel that is silent
    assert effective_channels(torch.eye(5)) == pytest.approx(5)
    assert effective_channels(torch.ones(3, 3, dtype=torch.float64)) == pytest.approx(1)


def test_information_is_a_gaussian_channel_s_capacity() -> None:
    """For z = x + noise of standard deviation s, x normal, I = log(1 + 1/s²) / 2 for each channel (Shannon 1948)."""
    stds = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    covariance = torch.diag(1 + stds.square())
    expected = sum(math.log(1 + 1 / std**2) / 2 for std in stds.tolist())
    assert information_bound(covariance, mean_log_std=stds.log()) == pytest.approx(expected)
    doubled = torch.tensor([[1.01, 1.0], [1.0, 1.01]], dtype=torch.float64)  # one signal seen twice
    once = math.log(1 + 1 / 0.01) / 2
    assert once < information_bound(doubled, mean_log_std=torch.full((2,), 0.1).log()) < 1.2 * once
