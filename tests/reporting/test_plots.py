"""Plots: axes that hold all values at round numbers, points where they belong, text that stays text."""

from __future__ import annotations

import math
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_vae.reporting.plots import Interval, Series, bar_plot, interval_plot, line_plot
from ldm_vae.reporting.scales import nice_scale, reduce_points, tick_text

NUMBERS = st.floats(-1e12, 1e12).filter(lambda value: value == 0 or abs(value) > 1e-12)


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_an_axis_holds_all_values_and_has_few_round_ticks(values: list[float]) -> None:
    scale = nice_scale(values, pixels=200)
    slack = 1e-6 * (scale.high - scale.low)
    assert scale.low - slack <= min(values)
    assert scale.high + slack >= max(values)
    assert 2 <= len(scale.ticks) <= 9
    assert all(-1e-6 <= scale.place(value) / 200 <= 1 + 1e-6 for value in values)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=5))
def test_a_logarithmic_axis_holds_all_values(values: list[float]) -> None:
    scale = nice_scale(values, log=True, pixels=200)
    assert scale.low <= min(values) * (1 + 1e-6)
    assert scale.high >= max(values) * (1 - 1e-6)
    assert scale.place(scale.low) == 0
    assert scale.place(scale.high) == 200


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_neighbouring_ticks_have_different_labels(start: float, span: float) -> None:
    scale = nice_scale([start, start + span], pixels=200)
    labels = [tick_text(tick, scale) for tick in scale.ticks]
    assert len(set(labels)) == len(labels)


def test_fewer_points_keep_the_peaks() -> None:
    points = [(float(x), 1.0) for x in range(1000)]
    points[777] = (777.0, 50.0)
    points[333] = (333.0, -50.0)
    kept = reduce_points(points, at_most=100)
    assert len(kept) <= 100
    assert {points[777], points[333]} <= set(kept)
    assert kept == sorted(kept)
    assert reduce_points(points[:100], at_most=100) == points[:100]


def places(svg: str) -> list[tuple[float, float]]:
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in fromstring(svg).iter("circle")]


def test_points_lie_in_proportion() -> None:
    series = Series(name="a", points=((0.0, 0.0), (50.0, 10.0), (100.0, 5.0)), marks=True)
    svg = line_plot([series], title="t", x_label="x", y_label="y")
    assert svg is not None
    (x0, y0), (x1, y1), (x2, y2) = places(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2)
    logarithmic = line_plot(
        [Series(name="a", points=((1.0, 1.0), (2.0, 10.0), (3.0, 100.0), (4.0, 0.0)), marks=True)],
        title="t", x_label="x", y_label="y", y_axis="log",
    )  # fmt: skip
    assert logarithmic is not None
    (_, y0), (_, y1), (_, y2) = places(logarithmic)  # zero has no place
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


def test_what_is_not_finite_is_left_out() -> None:
    points = ((0.0, math.nan), (1.0, math.inf), (2.0, 3.0))
    svg = line_plot([Series(name="a", points=points)], title="t", x_label="x", y_label="y")
    assert svg is not None
    assert len(places(svg)) == 1
    assert line_plot([Series(name="a", points=points[:2])], title="t", x_label="x", y_label="y") is None
    assert bar_plot([Series(name="a", points=points[:1])], title="t", x_label="x", y_label="y") is None
    assert interval_plot([Interval(name="a", value=math.nan, margin=1)], title="t", x_label="x") is None


def test_bars_are_as_long_as_their_values() -> None:
    svg = bar_plot([Series(name="a", points=((0.0, 1.0), (1.0, 4.0)))], title="t", x_label="x", y_label="y")
    assert svg is not None
    heights = [float(bar.attrib["height"]) for bar in fromstring(svg).iter("rect")]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)


def test_intervals_reach_their_margins() -> None:
    rows = [Interval(name="a", value=10.0, margin=2.0), Interval(name="b", value=12.0, margin=math.inf)]
    svg = interval_plot(rows, title="t", x_label="x")
    assert svg is not None
    (a, _), (b, _) = places(svg)
    low, high = (float(part) for part in next(
        path.attrib["d"] for path in fromstring(svg).iter("path") if "line" in path.attrib["class"]
    ).removeprefix("M").replace("H", " ").split()[::2])  # fmt: skip
    assert b - a == pytest.approx(high - a, abs=0.2)
    assert a - low == pytest.approx(high - a, abs=0.2)


def test_names_are_text() -> None:
    name = "</svg><script>alert(1)</script>\x1b"
    svg = interval_plot([Interval(name=name, value=1.0, margin=0.5)], title=name, x_label=name)
    assert svg is not None
    tags = {element.tag for element in fromstring(svg).iter()}
    assert tags <= {"svg", "path", "circle", "text", "title"}
