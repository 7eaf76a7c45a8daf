"""A plot with its words: what it shows, the colours of its lines, and what to look for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ldm_vae.reporting.plots import NUM_COLOURS, Series

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
