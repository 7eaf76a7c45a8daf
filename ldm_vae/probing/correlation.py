"""Whether the panel says what the probe finds: rank correlations over autoencoders, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLED = 2000


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's correlation of the ranks of two figures."""

    value: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    num: int
    """Autoencoders that have both figures."""

    def __str__(self) -> str:
        """Return the value with its interval."""
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Return the correlation of the ranks of two figures of the same autoencoders (Spearman 1904).

    The interval is the percentile bootstrap's over autoencoders: with eight of them it is wide, and is to be.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(pairs) < 3:
        return Correlation(value=math.nan, low=math.nan, high=math.nan, num=len(pairs))
    values = np.array(pairs)
    rng = np.random.default_rng(0)
    drawn = [_spearman(values[rng.integers(0, len(values), len(values))]) for _ in range(_RESAMPLED)]
    known = [value for value in drawn if math.isfinite(value)]
    low, high = np.percentile(known, [2.5, 97.5]) if known else (math.nan, math.nan)
    return Correlation(value=_spearman(values), low=float(low), high=float(high), num=len(values))


def _spearman(pairs: np.ndarray) -> float:
    """Return Pearson's correlation of the ranks [n, 2]; NaN where all of one figure are equal."""
    ranks = np.stack([_ranks(column) for column in pairs.T])
    spread = ranks.std(axis=1)
    if not spread.all():
        return math.nan
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / spread.prod())


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0, equal values sharing their mean rank."""
    order = np.sort(values)
    return (np.searchsorted(order, values, side="left") + np.searchsorted(order, values, side="right") - 1) / 2
