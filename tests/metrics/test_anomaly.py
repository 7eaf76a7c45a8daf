"""Scores, thresholds and areas under curves against scipy, numpy and plain counting."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.ndimage import uniform_filter
from scipy.optimize import minimize_scalar
from scipy.stats import mannwhitneyu, norm

from ldm_vae.metrics.anomaly import (
    calibrated_variance,
    detection,
    error_map,
    gaussian_bits,
    threshold,
    window_peak,
)


def errors(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 100


@pytest.mark.parametrize(("shape", "window"), [((12, 17), 5), ((12, 17), 1), ((9, 4), 4), ((3, 8), 5)])
def test_the_peak_is_the_largest_mean_of_a_whole_window(shape: tuple[int, int], window: int) -> None:
    maps = errors(3, *shape)
    sides = [min(window, side) for side in shape]
    expected = []
    for each in maps.double().numpy():
        means = uniform_filter(each, size=sides)
        inside = [slice(side // 2, length - (side - 1) // 2) for side, length in zip(sides, shape, strict=True)]
        expected.append(means[tuple(inside)].max())
    torch.testing.assert_close(window_peak(maps, window=window).double(), torch.tensor(expected), rtol=1e-5, atol=0)


def test_a_map_is_of_squared_errors_over_channels() -> None:
    before, after = errors(2, 3, 4, 5), errors(2, 3, 4, 5).flip(0)
    expected = ((before.numpy() - after.numpy()) ** 2).mean(axis=1)
    np.testing.assert_allclose(error_map(before, after).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("level", "mean", "variance"), [(100, 97.3, 9.0), (0, 0.2, 0.1), (255, 200.0, 400.0)])
def test_bits_are_the_expectation_over_the_noise_of_a_level_and_bound_the_levels_own(
    level: int, mean: float, variance: float
) -> None:
    std = math.sqrt(variance)
    found = gaussian_bits(torch.tensor([(level - mean) ** 2]), variance=variance).item()
    integral, _ = quad(lambda u: -norm.logpdf(level + u, mean, std) / math.log(2), -0.5, 0.5)
    assert found == pytest.approx(integral, rel=1e-6)
    probability = norm.cdf(level + 0.5, mean, std) - norm.cdf(level - 0.5, mean, std)
    assert found >= -math.log2(probability)


def test_the_calibrated_variance_makes_the_pictures_likeliest() -> None:
    squared = errors(20)
    best = minimize_scalar(
        lambda variance: gaussian_bits(squared, variance=variance).mean().item(), bounds=(1, 200), method="bounded"
    )
    assert calibrated_variance(squared) == pytest.approx(best.x, rel=1e-4)
    assert calibrated_variance(torch.zeros(3)) == pytest.approx(1 / 12)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95])
def test_the_threshold_is_numpys_quantile(quantile: float) -> None:
    assert threshold(errors(23), quantile=quantile) == pytest.approx(np.quantile(errors(23).numpy(), quantile))


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_areas_are_those_of_plain_counting_for_scores_of_any_size_and_ties(shift: float) -> None:
    generator = torch.Generator().manual_seed(1)
    is_anomaly = torch.rand(80, generator=generator) < 0.3
    scores = (torch.randn(80, generator=generator) + is_anomaly).mul(4).round().double() / 4 + shift
    assert len(scores.unique()) < 40
    found = detection(scores, is_anomaly)
    assert found is not None
    high, low = scores[is_anomaly].numpy(), scores[~is_anomaly].numpy()
    assert found.auroc == pytest.approx(mannwhitneyu(high, low).statistic / len(high) / len(low), abs=1e-6)
    points = [(0.0, 1.0)]
    for cut in sorted({*scores.tolist()}, reverse=True):
        chosen = scores >= cut
        hits = (chosen & is_anomaly).sum().item()
        points.append((hits / is_anomaly.sum().item(), hits / chosen.sum().item()))
    average = sum((after[0] - before[0]) * after[1] for before, after in itertools.pairwise(points))
    assert found.auprc == pytest.approx(average, abs=1e-6)


def test_there_are_areas_only_where_there_is_something_to_tell_apart() -> None:
    scores = torch.tensor([1.0, 2.0, math.nan], dtype=torch.float64)
    assert detection(scores, torch.tensor([True, True, False])) is None
    assert detection(scores, torch.tensor([False, False, True])) is None
    assert detection(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) is None
    both = detection(scores, torch.tensor([False, True, True]))
    assert both is not None
    assert both.auroc == 1
