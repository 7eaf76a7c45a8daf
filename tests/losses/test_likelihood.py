"""Likelihoods against torch's and scipy's distributions, and against numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal

from ldm_vae.losses.likelihood import LikelihoodKind, log_likelihood, negative_log_likelihood

WIDTH = 2 / 255
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def plain(kind: LikelihoodKind, centre: Tensor, std: float) -> Distribution:
    return Normal(centre, std) if kind == "gaussian" else Laplace(centre, std / math.sqrt(2))


@pytest.mark.parametrize("std", [1e-3, 0.02, 0.3, 10.0])
@pytest.mark.parametrize("centre", [-1.4, -1.0, -0.123, 0.0, 0.9971, 1.2])
def test_the_masses_of_all_levels_add_up_to_one(centre: float, std: float) -> None:
    mass = log_likelihood(LEVELS, tensor(centre), tensor(2 * math.log(std)), kind="logistic")
    assert mass.exp().sum().item() == pytest.approx(1, abs=1e-12)
    plain = stats.logistic(loc=centre, scale=std * math.sqrt(3) / math.pi)
    edges = np.concatenate([[-np.inf], LEVELS.numpy()[1:] - WIDTH / 2, [np.inf]])
    expected = np.diff(plain.cdf(edges))
    assert plain.std() == pytest.approx(std)
    np.testing.assert_allclose(mass.exp().numpy(), expected, rtol=1e-6, atol=1e-13)


def test_a_mass_that_nothing_reaches_has_a_gradient_in_float32() -> None:
    """Where both of its ends are at 1 to the last digit, their difference is 0, and its logarithm infinite."""
    centre = torch.tensor([-0.9, 0.9], requires_grad=True)
    loss = negative_log_likelihood(-centre.detach(), centre, torch.tensor(-10.0), kind="logistic")
    loss.backward()
    assert loss.isfinite()
    assert (centre.grad.sign() == torch.tensor([-1.0, 1.0])).all()


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_densities_are_torchs_of_that_standard_deviation(kind: LikelihoodKind) -> None:
    values, centres = torch.rand(2, 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)
    found = log_likelihood(values, centres, tensor(2 * math.log(0.07)), kind=kind)
    distribution = plain(kind, centres, 0.07)
    assert distribution.stddev.unique().item() == pytest.approx(0.07)
    torch.testing.assert_close(found, distribution.log_prob(values) + math.log(WIDTH))


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("std", [0.002, 0.05])
def test_the_mean_over_dequantisation_is_its_integral(kind: LikelihoodKind, std: float) -> None:
    """And no less than the bits of the level's own probability, which it comes near where levels are fine."""
    centres = torch.tensor([0.0, 0.001, 0.0035, 0.0039, 0.006, 0.02], dtype=torch.float64)
    places = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 - 0.5
    for centre in centres:
        distribution = plain(kind, centre, std)
        density = distribution.log_prob(places * WIDTH)  # of the level 0
        found = negative_log_likelihood(tensor(0), centre, tensor(2 * math.log(std)), kind=kind).item()
        assert found == pytest.approx(-(density + math.log(WIDTH)).mean().item(), rel=1e-8)
        ends = distribution.cdf(torch.tensor([-WIDTH / 2, WIDTH / 2], dtype=torch.float64))
        mass = -(density.exp().mean() * WIDTH).log().item()
        assert (ends[1] - ends[0]).item() == pytest.approx(math.exp(-mass), rel=1e-6, abs=1e-9)
        assert found >= mass
        assert std < 0.05 or found == pytest.approx(mass, abs=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "logistic"])
def test_the_loss_is_nats_a_dimension(kind: LikelihoodKind) -> None:
    """It is the mean over elements, and about that of the log-likelihoods of the levels themselves."""
    images = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    y = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    loss = negative_log_likelihood(images, y, torch.tensor(-4.0), kind=kind)
    expected = -log_likelihood(images, y, torch.tensor(-4.0), kind=kind).mean()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
