"""The rate's statistics against torch's distributions, and what bounds it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from ldm_vae.losses.rate import RateControl, channel_kl, posterior_moments, summarise_posterior
from ldm_vae.losses.term import Schedule

TRUE = torch.tensor(True)


def posterior(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(4, channels, 5, 5, generator=rng), torch.randn(4, channels, 5, 5, generator=rng) - 2


def test_moments_give_the_divergence_of_each_channel_and_parts_of_a_batch_average() -> None:
    mean, logvar = posterior()
    expected = torch_kl(Normal(mean, torch.exp(logvar / 2)), Normal(0.0, 1.0)).mean(dim=(0, 2, 3))
    torch.testing.assert_close(channel_kl(posterior_moments(mean, logvar)), expected)
    parts = torch.stack([posterior_moments(mean[i : i + 1], logvar[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(parts.mean(0), posterior_moments(mean, logvar))


def test_a_collapsed_channel_is_inactive_and_shares_nothing() -> None:
    """A mean of variance v under noise of variance s shares log(1 + v / s) / 2 nats, if it is normal."""
    mean = (
        torch.randn(8, 2, 64, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.0])[:, None, None]
    )
    logvar = torch.zeros_like(mean) + torch.tensor([math.log(0.25), 0.0])[:, None, None]
    summary = summarise_posterior(posterior_moments(mean, logvar), least_variance=0.01)
    assert summary is not None
    assert summary.active_channels == 1
    assert summary.mutual_information == pytest.approx(0.5 * math.log(1 + 4 / 0.25) / 2, rel=0.01)
    assert summary.kl_per_channel[1] == pytest.approx(0, abs=1e-6)
    assert summarise_posterior(torch.full((4, 2), torch.nan), least_variance=0.01) is None


def test_free_bits_leave_the_channels_below_them_alone_from_the_next_update_on() -> None:
    rate = RateControl(free_bits=0.5, capacity=None, channels=3, device=torch.device("cpu"))
    assert rate.gates.tolist() == [1, 1, 1]
    rate.update(torch.tensor([0.2, 0.6, 0.5]), step=1, finite=TRUE)
    assert rate.gates.tolist() == [0, 1, 0]
    rate.update(torch.tensor([9.0, 9.0, 9.0]), step=2, finite=~TRUE)
    assert rate.gates.tolist() == [0, 1, 0]
    kl = torch.tensor([0.2, 0.6, 0.5], requires_grad=True)
    value = rate.gated(kl.sum(), kl)
    (ours,) = torch.autograd.grad(value, kl)
    (expected,) = torch.autograd.grad(torch.clamp(kl, min=0.5).sum(), kl)
    assert value.item() == pytest.approx(1.3)
    assert ours.tolist()[:2] == expected.tolist()[:2]


def test_capacity_draws_the_rate_to_it_from_either_side() -> None:
    capacity = Schedule(start=0.0, end=1.0, from_step=0, to_step=10)
    rate = RateControl(free_bits=0.0, capacity=capacity, channels=2, device=torch.device("cpu"))
    for step, sign in ((2, 1), (6, -1)):
        rate.update(torch.tensor([0.3, 0.5]), step=step, finite=TRUE)
        assert rate.gates.tolist() == [sign, sign]
        kl = torch.tensor([0.3, 0.5], requires_grad=True)
        (ours,) = torch.autograd.grad(rate.gated(kl.mean(), kl / 2), kl)
        (expected,) = torch.autograd.grad((kl.mean() - capacity.at(step)).abs(), kl)
        torch.testing.assert_close(ours, expected)


def test_cycles_rise_in_their_first_half_and_stay_for_the_second() -> None:
    schedule = Schedule(start=0.0, end=1.0, from_step=2, to_step=18, cycles=2)
    values = [schedule.at(step) for step in range(20)]
    assert values == [0, 0, *([0, 0.25, 0.5, 0.75, 1, 1, 1, 1] * 2), 1, 1]
