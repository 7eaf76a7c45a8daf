"""Plots as SVG that stands in the page: lines, bars and intervals, whose colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from ldm_vae.reporting.scales import Point, Scale, nice_scale, reduce_points, tick_text
from ldm_vae.system.text import printable

NUM_COLOURS = 8
_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 12, 46
_INNER_WIDTH, _INNER_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_ROW, _NAMES = 38, 150
_LONGEST_NAME = 22
_NUMBER = 58

AxisKind = Literal["linear", "log", "auto"]
"""`auto` is logarithmic where all values are positive and span more than a factor of 30."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of one thing."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    """Which of the page's colours it has; they repeat from the ninth on, and lines are dashed then."""
    marks: bool = False
    """Whether each point is drawn as a dot."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and how far to both sides it may lie from the truth."""

    name: str
    value: float
    margin: float
    colour: int = 0


def line_plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_axis: AxisKind = "linear",
    y_axis: AxisKind = "linear",
    max_points: int = 160,
) -> Markup | None:
    """Return lines in one frame; None where no point can be drawn.

    Points that aren't finite, or not positive on a logarithmic axis, are left out.
    """
    finite = [
        replace(each, points=tuple(point for point in each.points if all(map(math.isfinite, point))))
        for each in series
    ]
    logs = [
        _is_log(axis, [point[number] for each in finite for point in each.points])
        for number, axis in enumerate((x_axis, y_axis))
    ]
    drawn = []
    for each in finite:
        points = [point for point in each.points if all(v > 0 for v, log in zip(point, logs, strict=True) if log)]
        if points:
            drawn.append((each, reduce_points(points, at_most=max_points)))
    if not drawn:
        return None
    xs = nice_scale([x for _, points in drawn for x, _ in points], log=logs[0], pixels=_INNER_WIDTH)
    ys = nice_scale([y for _, points in drawn for _, y in points], log=logs[1], pixels=_INNER_HEIGHT)
    svg = _svg(title, height=_HEIGHT)
    _axes(svg, xs, ys, x_label=x_label, y_label=y_label)
    for each, points in drawn:
        _line(svg, each, [(_LEFT + xs.place(x), _HEIGHT - _BOTTOM - ys.place(y)) for x, y in points], points)
    return _markup(svg)


def bar_plot(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> Markup | None:
    """Return bars, those of several series beside each other at whole numbers x; None where there are none."""
    values = [y for each in series for _, y in each.points if math.isfinite(y)]
    numbers = sorted({int(x) for each in series for x, _ in each.points})
    if not values:
        return None
    ys = nice_scale(values, pixels=_INNER_HEIGHT, from_zero=True)
    slot = _INNER_WIDTH / len(numbers)
    width = 0.76 * slot / len(series)
    svg = _svg(title, height=_HEIGHT)
    _y_axis(svg, ys, label=y_label)
    _text(svg, x_label, x=_LEFT + _INNER_WIDTH / 2, y=_HEIGHT - 6, anchor="middle", kind="label")
    every = max(1, math.ceil(len(numbers) / 16))
    for position, number in enumerate(numbers):
        if position % every == 0:
            _text(svg, str(number), x=_LEFT + slot * (position + 0.5), y=_HEIGHT - _BOTTOM + 18, anchor="middle")
    for order, each in enumerate(series):
        for x, y in each.points:
            if math.isfinite(y):
                left = _LEFT + slot * (numbers.index(int(x)) + 0.12) + width * order
                top, bottom = sorted(_HEIGHT - _BOTTOM - ys.place(value) for value in (y, 0.0))
                bar = _shape(svg, "rect", f"bar c{each.colour % NUM_COLOURS}", x=left, y=top)
                bar.attrib |= {"width": f"{width:.1f}", "height": f"{bottom - top:.1f}"}
                SubElement(bar, "title").text = f"{printable(each.name)}, {int(x)}: {y:.4g}"
    return _markup(svg)


def interval_plot(rows: Sequence[Interval], *, title: str, x_label: str) -> Markup | None:
    """Return a row for each value, with a bar as long as its margin to both sides; None where none is finite."""
    finite = [row for row in rows if math.isfinite(row.value)]
    if not finite:
        return None
    margins = [row.margin if math.isfinite(row.margin) else 0.0 for row in finite]
    ends = [row.value + sign * margin for row, margin in zip(finite, margins, strict=True) for sign in (-1, 1)]
    xs = nice_scale(ends, pixels=_WIDTH - _NAMES - _RIGHT - 8)
    bottom = _TOP + _ROW * len(finite)
    svg = _svg(title, height=bottom + _BOTTOM)
    for tick in _spaced(xs):
        x = _NAMES + xs.place(tick)
        _rule(svg, x, _TOP, x, bottom)
        _text(svg, tick_text(tick, xs), x=x, y=bottom + 18, anchor="middle")
    _text(svg, x_label, x=_NAMES + xs.pixels / 2, y=bottom + 40, anchor="middle", kind="label")
    for number, (row, margin) in enumerate(zip(finite, margins, strict=True)):
        y = _TOP + _ROW * (number + 0.5)
        _text(svg, shortened(row.name), x=_NAMES - 12, y=y + 4.5, anchor="end")
        low, high = (_NAMES + xs.place(row.value + sign * margin) for sign in (-1, 1))
        colour = f"c{row.colour % NUM_COLOURS}"
        line = SubElement(svg, "path", {"class": f"line {colour}", "d": f"M{low:.1f} {y:.1f}H{high:.1f}"})
        SubElement(line, "title").text = f"{printable(row.name)}: {row.value:.4g} ± {row.margin:.2g}"
        _shape(svg, "circle", f"dot {colour}", cx=_NAMES + xs.place(row.value), cy=y).attrib["r"] = "5"
    return _markup(svg)


def shortened(name: str) -> str:
    """Return a name on one line that isn't longer than a plot has room for."""
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2]}…{name[1 - _LONGEST_NAME // 2 :]}"


def _is_log(axis: AxisKind, values: Sequence[float]) -> bool:
    if axis == "auto":
        return bool(values) and min(values) > 0 and max(values) > 30 * min(values)
    return axis == "log"


def _line(svg: Element, series: Series, places: list[Point], values: list[Point]) -> None:
    colour = f"c{series.colour % NUM_COLOURS}" + (" again" if series.colour >= NUM_COLOURS else "")
    if len(places) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        SubElement(svg, "path", {"class": f"line {colour}", "d": path})
    if series.marks or len(places) == 1:
        for (x, y), (_, value) in zip(places, values, strict=True):
            dot = _shape(svg, "circle", f"dot {colour}", cx=x, cy=y)
            dot.attrib["r"] = "4"
            SubElement(dot, "title").text = f"{printable(series.name)}: {value:.4g}"


def _svg(title: str, *, height: float) -> Element:
    box = f"0 0 {_WIDTH} {height:g}"
    return Element("svg", {"viewBox": box, "role": "img", "aria-label": printable(title), "class": "plot"})


def _axes(svg: Element, xs: Scale, ys: Scale, *, x_label: str, y_label: str) -> None:
    _y_axis(svg, ys, label=y_label)
    bottom = _HEIGHT - _BOTTOM
    for tick in _spaced(xs):
        _text(svg, tick_text(tick, xs), x=_LEFT + xs.place(tick), y=bottom + 18, anchor="middle")
    _text(svg, x_label, x=_LEFT + _INNER_WIDTH / 2, y=_HEIGHT - 6, anchor="middle", kind="label")


def _y_axis(svg: Element, ys: Scale, *, label: str) -> None:
    for tick in ys.ticks:
        y = _HEIGHT - _BOTTOM - ys.place(tick)
        _rule(svg, _LEFT, y, _WIDTH - _RIGHT, y)
        _text(svg, tick_text(tick, ys), x=_LEFT - 8, y=y + 4.5, anchor="end")
    middle = _TOP + _INNER_HEIGHT / 2
    text = _text(svg, label, x=13, y=middle, anchor="middle", kind="label")
    text.attrib["transform"] = f"rotate(-90 13 {middle:g})"


def _spaced(scale: Scale) -> list[float]:
    """Return ticks whose labels have room beside each other, the ends included."""
    every = max(1, math.ceil(_NUMBER * (len(scale.ticks) - 1) / scale.pixels))
    return scale.ticks[::every]


def _rule(svg: Element, x1: float, y1: float, x2: float, y2: float) -> None:
    SubElement(svg, "path", {"class": "rule", "d": f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"})


def _shape(svg: Element, tag: str, kind: str, **places: float) -> Element:
    return SubElement(svg, tag, {"class": kind} | {name: f"{value:.1f}" for name, value in places.items()})


def _text(svg: Element, text: str, *, x: float, y: float, anchor: str, kind: str = "tick") -> Element:
    element = SubElement(svg, "text", {"class": kind, "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})
    element.text = printable(text)
    return element


def _markup(svg: Element) -> Markup:
    """Return the SVG as markup; what ElementTree writes is escaped."""
    return Markup(tostring(svg, encoding="unicode"))
