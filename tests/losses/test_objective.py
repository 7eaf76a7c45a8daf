"""The terms of the objective in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from ldm_vae.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from ldm_vae.losses.kl import kl_divergence
from ldm_vae.losses.objective import Objective
from ldm_vae.losses.pixel import pixel_distance
from ldm_vae.losses.term import Schedule, Term


def test_kl_is_that_of_the_normal_distributions() -> None:
    mean, logvar = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    expected = torch_kl(Normal(mean, torch.exp(logvar / 2)), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.5), ("l2", 0.25)])
def test_pixel_distance_does_not_grow_with_the_resolution(kind: str, expected: float) -> None:
    for size in (4, 32):
        images = torch.zeros(2, 3, size, size)
        assert pixel_distance(images, images + 0.5, kind=kind).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("hinge", 0.5 * (0.7 + 1.4)), ("vanilla", 0.5 * (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(0.4))))],
)
def test_adversarial_losses(kind: str, expected: float) -> None:
    real, fake = torch.full((2, 1, 3, 3), 0.3), torch.full((2, 1, 3, 3), 0.4)
    assert discriminator_loss(real, fake, kind=kind).item() == pytest.approx(expected)
    assert generator_loss(fake).item() == pytest.approx(-0.4)


def test_hinge_stops_at_its_margin() -> None:
    assert discriminator_loss(torch.tensor([1.5]), torch.tensor([-2.0]), kind="hinge").item() == 0


@pytest.mark.parametrize("factor", [1.0, 1e-12])
def test_adaptive_weight_is_the_ratio_of_norms_clamped_as_published(factor: float) -> None:
    grad_reconstruction = torch.tensor([3.0, 4.0])
    grad_generator = factor * torch.tensor([0.0, 2.0])
    weight = adaptive_weight(grad_reconstruction, grad_generator, num_elements=3 * 256 * 256).item()
    published = min(3 * 256 * 256 * 5 / (2 * factor + 1e-4), 1e4)
    assert weight * 3 * 256 * 256 == pytest.approx(published if factor < 1 else 1e4, rel=1e-5)
    small = adaptive_weight(1e-4 * grad_reconstruction, torch.tensor([0.0, 2.0]), num_elements=48).item()
    assert small == pytest.approx(5e-4 / (2 + 1e-4))


def make_objective(*, weight: float | Schedule = 1.0, learn_logvar: bool = False) -> Objective:
    return Objective(
        terms=[
            Term(name="size", on="latents", weight=weight, of=lambda output, images: output.abs().mean()),
            Term(name="rec", on="images", weight=1.0, of=lambda images, y: pixel_distance(images, y, kind="l1")),
            Term(name="twice", on="images", weight=weight, of=lambda images, y: 2 * (images - y).abs().mean()),
        ],
        learn_logvar=learn_logvar,
    )


def test_log_variance_enters_as_a_likelihood() -> None:
    images, s = torch.zeros(1, 3, 4, 4), torch.tensor(0.7)
    loss = make_objective(learn_logvar=True).image_loss(images, images + 0.5, likelihood_logvar=s, step=0)
    assert loss.total.item() == pytest.approx(1.5 / math.exp(0.7) + 0.7)
    assert loss.figures["rec"].item() == pytest.approx(0.5)


def test_a_term_on_the_likelihood_has_the_log_variance() -> None:
    plain = make_objective()
    likelihood = Term(name="nll", on="likelihood", weight=1.0, of=lambda images, y, s: (images - y).abs().mean() * s)
    objective = Objective(terms=[likelihood, *plain.terms])
    assert objective.names == ("rec", "twice", "nll", "size")
    assert (objective.trains_logvar, plain.trains_logvar) == (True, False)
    images, s = torch.zeros(1, 3, 4, 4), torch.tensor(0.7)
    loss = objective.image_loss(images, images + 0.5, likelihood_logvar=s, step=0)
    assert loss.total.item() == pytest.approx(1.5 + 0.35)
    assert loss.figures["nll"].item() == pytest.approx(0.35)


def test_terms_are_weighted_and_shown_without_their_weight() -> None:
    objective = make_objective(weight=Schedule(start=0.0, end=0.5, from_step=10, to_step=20))
    images, s = torch.zeros(1, 3, 4, 4), torch.zeros(())
    assert objective.names == ("rec", "twice", "size")
    for step, weight in ((0, 0.0), (10, 0.0), (14, 0.2), (20, 0.5), (99, 0.5)):
        on_images = objective.image_loss(images, images + 0.5, likelihood_logvar=s, step=step)
        on_latents = objective.latent_loss(images + 3.0, images, step=step)
        assert on_images.total.item() == pytest.approx(0.5 + weight)
        assert on_latents.total.item() == pytest.approx(3.0 * weight)
        figures = {name: figure.item() for name, figure in (on_images.figures | on_latents.figures).items()}
        assert figures == {"rec": 0.5, "twice": 1.0, "size": 3.0}


def test_a_schedule_may_fall() -> None:
    schedule = Schedule(start=1.0, end=0.0, from_step=0, to_step=4)
    assert [schedule.at(step) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
