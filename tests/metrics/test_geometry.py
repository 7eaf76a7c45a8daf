"""Dimension, spread and classes of clouds of points that are known."""

import math

import pytest
import torch
from torch import Tensor

from ldm_vae.metrics.geometry import intrinsic_dimension, linear_accuracy, neighbour_accuracy, uniformity


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_dimension_of_a_plane_in_a_larger_space(dimension: int) -> None:
    points = uniform(800, dimension) @ normal(dimension, 20)
    assert intrinsic_dimension(points) == pytest.approx(dimension, rel=0.18)
    assert intrinsic_dimension(torch.cat([points, points[:5]])) == pytest.approx(dimension, rel=0.18)  # doubles


def test_points_that_have_no_dimension() -> None:
    assert math.isnan(intrinsic_dimension(normal(2, 3)))
    assert math.isnan(intrinsic_dimension(torch.zeros(5, 3)))


def test_uniformity_of_one_direction_and_of_all() -> None:
    assert uniformity(torch.ones(10, 4)) == pytest.approx(0, abs=1e-12)
    far = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(far) == pytest.approx(-8)
    assert uniformity(normal(200, 64)) == pytest.approx(-4, abs=0.2)


def test_classes_are_found_where_they_are_apart_and_not_where_they_are_not() -> None:
    labels = torch.arange(300) % 3 * 7  # numbers with gaps
    centres = 3 * normal(3, 12, seed=1)
    apart = normal(300, 12) + centres[labels // 7]
    assert neighbour_accuracy(apart, labels) > 0.95
    assert linear_accuracy(apart, labels) > 0.95
    mixed = normal(300, 12)
    assert neighbour_accuracy(mixed, labels) == pytest.approx(1 / 3, abs=0.1)
    assert linear_accuracy(mixed, labels) == pytest.approx(1 / 3, abs=0.1)


def test_a_linear_probe_is_not_asked_what_it_was_fitted_on() -> None:
    """With more features than points any labels could be fitted."""
    labels = torch.arange(60) % 2
    assert linear_accuracy(normal(60, 200)[torch.randperm(60)], labels) < 0.75
