"""Tables of a page: numbers as people read them, and which are the best of their column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Better = Literal["higher", "lower", ""]
_LOWER = ("lpips_", "efficientnet_", "rkid", "rfid")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure in a table."""

    text: str
    value: float | str = ""
    """What the column is sorted by."""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of figures."""

    name: str
    unit: str = ""
    better: Better = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row, with the name that it begins with."""

    name: str
    cells: list[Cell]
    colour: int | None = None
    """The colour that plots give to what the row is about."""
    hint: str = ""
    """What the row's figure is."""
    better: Better = ""
    picture: int | None = None
    """The number of an image that is among the pictures."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of figures."""

    caption: str
    first: str
    """What the column of names is called."""
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)


def better_of(metric: str) -> Better:
    """Return which way a metric of `evaluate` is better, where one is."""
    if metric in ("psnr", "ssim"):
        return "higher"
    return "lower" if metric.startswith(_LOWER) else ""


def figure(value: float, unit: str = "") -> str:
    """Return a number as people read it: decibels, and from 10 on, with two digits behind the point, else four."""
    if not math.isfinite(value):
        return "not finite"
    if unit == "dB":
        return f"{value:.2f}"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 0.01 <= abs(value) < 1000:
        return f"{value:.{4 if abs(value) < 10 else 2}f}"
    return f"{value:.4g}"


def cells(values: Sequence[float | None], *, unit: str = "", better: Better = "") -> list[Cell]:
    """Return a column's cells; None is an empty one. With two numbers at least, the best is marked."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    best = None
    if better and len(finite) > 1:
        best = max(finite) if better == "higher" else min(finite)
    return [
        Cell(text="")
        if value is None
        else Cell(text=figure(value, unit), value=float(f"{value:.6g}"), best=value == best)
        for value in values
    ]
