"""Rank correlations against scipy's."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from ldm_vae.probing.correlation import rank_correlation


def test_it_is_spearman_s_with_ties() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 6, 12).astype(float)
    second = first + rng.normal(0, 2, 12)
    found = rank_correlation(first, second)
    assert found.value == pytest.approx(spearmanr(first, second).statistic)
    assert found.low < found.value < found.high
    assert found.num == 12


def test_certain_and_unknown_ones() -> None:
    found = rank_correlation(range(8), [2.0**i for i in range(8)])
    assert found.value == pytest.approx(1)
    assert found.low == pytest.approx(1)
    assert str(rank_correlation(range(8), [-i for i in range(8)])).startswith("-1.00")
    assert math.isnan(rank_correlation([1.0, 2.0, math.nan], [1.0, 2.0, 3.0]).value)
    assert math.isnan(rank_correlation([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]).value)
    assert rank_correlation([*range(8), math.nan], [*range(8), 1.0]).num == 8
