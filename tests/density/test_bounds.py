"""Bounds against densities that are known: of probabilistic PCA in closed form, of one latent by quadrature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ldm_vae.density.bounds import DensityBounds, density_bounds
from ldm_vae.density.measure import bits_per_dimension
from ldm_vae.losses.likelihood import LikelihoodKind, log_likelihood
from tests.density.linear import Linear, LinearAutoencoder, Ppca, linear_samples

SIDE = 4
WIDTH = 2 / 255


@pytest.fixture(scope="module")
def ppca() -> Ppca:
    return Ppca(linear_samples(2000), latent_channels=2)


def images_of(samples: Tensor, *, side: int) -> Tensor:
    """[B, 3, side, side], float32."""
    return samples.reshape(-1, side, side, 3).permute(0, 3, 1, 2).float()


def noise_for(images: Tensor, channels: int, *, count: int, at_once: int) -> Iterator[Tensor]:
    """Samples in parts, the first of them the same however many there are."""
    rng = torch.Generator().manual_seed(0)
    shape = (len(images), channels, *images.shape[-2:])
    samples = [torch.randn(shape, generator=rng) for _ in range(count)]
    for start in range(0, count, at_once):
        yield torch.stack(samples[start : start + at_once], dim=1)


def bounds_of(vae: Linear, images: Tensor, ppca: Ppca, *, count: int, at_once: int = 7) -> DensityBounds:
    noise = noise_for(images, 2, count=count, at_once=at_once)
    return density_bounds(vae, images, kind="gaussian", logvar=ppca.logvar, noise=noise)


def test_the_textbooks_density_is_that_of_the_covariance(ppca: Ppca) -> None:
    covariance = ppca.weight @ ppca.weight.T + ppca.variance * torch.eye(3, dtype=torch.float64)
    images = images_of(linear_samples(3, seed=1), side=1)
    plain = torch.distributions.MultivariateNormal(ppca.mean, covariance)
    expected = plain.log_prob(images.double()[:, :, 0, 0])
    torch.testing.assert_close(ppca.log_density(images), expected)


@pytest.mark.parametrize("count", [1, 5, 50])
def test_with_the_exact_posterior_both_bounds_are_the_density(ppca: Ppca, count: int) -> None:
    images = images_of(linear_samples(6 * SIDE**2, seed=1), side=SIDE)
    elements = images[0].numel()
    bits = bits_per_dimension(bounds_of(ppca.autoencoder(), images, ppca, count=count), num_elements=elements)
    exact = -(ppca.log_density(images) + elements * math.log(WIDTH)) / (elements * math.log(2))
    assert 2 < exact.mean() < 8
    assert bits["elbo"] == pytest.approx(exact.tolist(), abs=1e-4)  # bits a dimension
    assert bits["iwae"] == pytest.approx(exact.tolist(), abs=1e-4)


def test_with_a_wrong_posterior_they_are_below_it_and_rise_with_the_samples(ppca: Ppca) -> None:
    images = images_of(linear_samples(256, seed=1), side=1)
    vae = ppca.autoencoder(shift=0.3, widening=0.7)
    five, fifty = (bounds_of(vae, images, ppca, count=count) for count in (5, 50))
    exact = ppca.log_density(images) + 3 * math.log(WIDTH)
    row = [fifty.elbo.mean(), five.iwae.mean(), fifty.iwae.mean(), exact.mean()]
    assert all(lower + 5e-3 < higher for lower, higher in itertools.pairwise(row)), row
    assert (fifty.elbo <= fifty.iwae).all()
    assert (five.elbo <= five.iwae).all()

    # The gap of the evidence lower bound is the divergence of the posterior from the exact one, which is known.
    right = ppca.autoencoder()
    wrong, posterior = (each.encode_latent(images) for each in (vae, right))
    normals = [
        torch.distributions.Normal(each.mean, torch.exp(0.5 * each.posterior_logvar)) for each in (wrong, posterior)
    ]
    gap = torch.distributions.kl_divergence(*normals).sum(dim=(1, 2, 3)).mean()
    assert (exact.mean() - fifty.elbo.mean()).item() == pytest.approx(gap.item(), rel=0.05)


def test_rate_and_distortion_are_the_bounds_parts(ppca: Ppca) -> None:
    images = images_of(linear_samples(64 * SIDE**2, seed=1), side=SIDE)
    bounds = bounds_of(ppca.autoencoder(), images, ppca, count=50)
    assert bounds.rate.min() > 0
    assert (bounds.rate + bounds.distortion).mean().item() == pytest.approx(-bounds.elbo.mean().item(), rel=2e-3)


def test_how_samples_are_divided_does_not_matter(ppca: Ppca) -> None:
    images = images_of(linear_samples(3 * SIDE**2, seed=1), side=SIDE)
    vae = ppca.autoencoder(shift=0.1)
    whole, parts = (bounds_of(vae, images, ppca, count=12, at_once=at_once) for at_once in (12, 5))
    for name in ("elbo", "iwae", "distortion", "rate"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), rtol=1e-5, atol=0)


def test_improbable_pictures_have_bounds(ppca: Ppca) -> None:
    """Weights of e^-5000 are no zeros."""
    images = torch.full((1, 3, SIDE, SIDE), 20.0)
    bounds = bounds_of(ppca.autoencoder(shift=0.1), images, ppca, count=5)
    assert bounds.iwae.isfinite().all()
    assert bounds.iwae.item() < -5000
    exact = ppca.log_density(images) + images.numel() * math.log(WIDTH)
    assert bounds.iwae.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "logistic"])
def test_many_samples_give_the_integral_over_the_latent(kind: LikelihoodKind) -> None:
    """One latent, over which the density is integrated on a grid."""
    torch.manual_seed(0)
    model = LinearAutoencoder(3, 3, 1)
    vae = Linear.of(model.eval())
    logvar = 2 * math.log(0.3)
    pixel = torch.tensor([250, 120, 3]) / 127.5 - 1
    images = pixel.view(1, 3, 1, 1).float()
    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    with torch.no_grad():
        y = vae.decode(grid.float().view(-1, 1, 1, 1)).double()
    likelihoods = log_likelihood(images.double(), y, torch.tensor(logvar, dtype=torch.float64), kind=kind)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
    integral = torch.logsumexp(likelihoods.sum(dim=(1, 2, 3)) + prior, dim=0) + math.log(18 / 20_000)
    bounds = density_bounds(
        vae, images, kind=kind, logvar=logvar, noise=noise_for(images, 1, count=20_000, at_once=20_000)
    )
    assert bounds.iwae.item() == pytest.approx(integral.item(), abs=0.02)
    assert bounds.elbo.item() < integral.item() - 0.1
