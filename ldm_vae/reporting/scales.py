"""Axes of plots: which numbers stand on them, and where a value lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis of so many pixels from `low` to `high`."""

    low: float
    high: float
    log: bool
    pixels: float
    ticks: list[float]
    """Values that are labelled."""

    def place(self, value: float) -> float:
        """Return where a value lies, in pixels from the low end."""
        low, high, value = (math.log10(each) if self.log else each for each in (self.low, self.high, value))
        return (value - low) / (high - low) * self.pixels


def nice_scale(values: Sequence[float], *, log: bool = False, pixels: float, from_zero: bool = False) -> Scale:
    """Return an axis that holds all values, which are finite, and on a logarithmic one positive."""
    low, high = min(values), max(values)
    if log:
        return _log_scale(low, high, pixels=pixels)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        middle = abs(low) or 1.0
        low, high = low - middle / 2, high + middle / 2
    step = _nice_step((high - low) / max(2, pixels / 55))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return Scale(low=ticks[0], high=ticks[-1], log=False, pixels=pixels, ticks=ticks)


def _nice_step(rough: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _log_scale(low: float, high: float, *, pixels: float) -> Scale:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    steps = max(1, round((last - first) / max(2, pixels / 40)))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1, steps) for factor in factors]
    within = [tick for tick in ticks if tick <= 10.0**last * (1 + 1e-9)]
    return Scale(low=10.0**first, high=10.0**last, log=True, pixels=pixels, ticks=within)


def tick_text(value: float, scale: Scale) -> str:
    """Return a tick's label: as many digits as tell it from its neighbours, thousands as k, millions as M."""
    if value == 0:
        return "0"
    size = max(abs(scale.low), abs(scale.high))
    if scale.log:
        return f"{value:g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    step = scale.ticks[1] - scale.ticks[0]
    if size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    unit, divisor = next(((name, part) for name, part in (("M", 1e6), ("k", 1e3)) if size >= 10 * part), ("", 1.0))
    digits = max(0, -math.floor(math.log10(step / divisor) + 1e-9))
    return f"{value / divisor:.{digits}f}{unit}"


def reduce_points(points: Sequence[Point], *, at_most: int) -> list[Point]:
    """Return about `at_most` points in their order: the lowest and the highest of each stretch, so that peaks stay."""
    if len(points) <= at_most:
        return list(points)
    count = max(1, at_most // 2)
    kept: list[Point] = []
    for number in range(count):
        stretch = points[number * len(points) // count : (number + 1) * len(points) // count]
        lowest = min(range(len(stretch)), key=lambda i: stretch[i][1])
        highest = max(range(len(stretch)), key=lambda i: stretch[i][1])
        kept += [stretch[i] for i in sorted({lowest, highest})]
    return kept
