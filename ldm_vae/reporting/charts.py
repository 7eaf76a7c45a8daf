"""A plot with its words: what it shows, the colours of its lines, and what to look for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from ldm_vae.reporting.limits import Limits
from ldm_vae.reporting.plots import NUM_COLOURS, Series, bar_plot, line_plot

REFERENCE = NUM_COLOURS - 1
"""The colour of what others are compared with, such as the originals."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure of a page."""

    title: str
    plot: Markup
    text: str = ""
    legend: tuple[tuple[str, int], ...] = ()
    """Names with their colours; empty where there is one line, which the title names."""


def colour_of(number: int) -> int:
    """Return the colour of the `number`-th autoencoder or run: all but that of references, in turn."""
    return number % REFERENCE + NUM_COLOURS * (number // REFERENCE)


def chart(title: str, plot: Markup | None, *, series: Sequence[Series], text: str = "") -> list[Chart]:
    """Return a chart, with a legend where it has several series; nothing where there is no plot."""
    if plot is None:
        return []
    legend = tuple((each.name, each.colour % NUM_COLOURS) for each in series) if len(series) > 1 else ()
    return [Chart(title=title, plot=plot, text=text, legend=legend)]


def channel_chart(
    title: str, series: Sequence[Series], limits: Limits, *, y_label: str = "", text: str = ""
) -> list[Chart]:
    """Return a bar for each channel; where there are many, lines of the values from the largest on."""
    if sum(len(each.points) for each in series) <= limits.bars:
        return chart(
            title, bar_plot(series, title=title, x_label="channel", y_label=y_label), series=series, text=text
        )
    falling = []
    for each in series:
        values = sorted((value for _, value in each.points if math.isfinite(value)), reverse=True)
        falling.append(replace(each, points=tuple((float(place), value) for place, value in enumerate(values))))
    title, most = f"{title}, the largest first", limits.points_in(len(series))
    plot = line_plot(falling, title=title, x_label="channels", y_label=y_label, max_points=most)
    return chart(title, plot, series=series, text=text)
