"""The panel of measures of how well a diffusion model could learn on latents, of evaluations and probes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_vae.reporting.charts import Chart, chart
from ldm_vae.reporting.limits import Limits
from ldm_vae.reporting.plots import Series, line_plot
from ldm_vae.reporting.reading import number_of
from ldm_vae.reporting.tables import Better, Column, Row, Table, cells
from ldm_vae.system.text import printable

_BETTER: dict[str, Better] = {"higher": "higher", "lower": "lower"}


@dataclass(frozen=True, kw_only=True)
class Panelled:
    """An autoencoder with its panel, where it has one."""

    name: str
    colour: int
    panel: dict[str, Any] | None


def panel_table(panels: Sequence[Panelled], *, measures: Mapping[str, Any]) -> Table | None:
    """Return a row a measure, a column an autoencoder; None where none has a panel.

    Args:
        panels: The autoencoders.
        measures: What the measures are, as metrics.json tells it.
    """
    there = [each for each in panels if each.panel is not None]
    if not there:
        return None
    names = dict.fromkeys(name for each in there for name in _figures(each))
    rows = []
    for name in names:
        told = measures.get(name, {})
        unit, better = str(told.get("unit", "")), _BETTER.get(str(told.get("better")), "")
        values = [_figures(each).get(name) for each in there]
        hint = ". ".join(printable(str(told[key])) for key in ("definition", "source") if told.get(key))
        label = f"{name}, {unit}" if unit else name
        rows.append(
            Row(name=printable(label), cells=cells(values, unit=unit, better=better), hint=hint, better=better)
        )
    columns = [Column(name=each.name) for each in there]
    return Table(caption="Panel of the latents", first="measure", columns=columns, rows=rows)


def panel_charts(panels: Sequence[Panelled], limits: Limits) -> list[Chart]:
    """Return the power of the latents' spatial frequencies."""
    series = []
    for each in panels:
        if each.panel is not None:
            power = each.panel["spectrum"]
            step = math.sqrt(2) / len(power)
            points = tuple(((ring + 0.5) * step, number_of(value)) for ring, value in enumerate(power))
            series.append(Series(name=each.name, points=points, colour=each.colour))
    title = "Spectrum of the latents"
    plot = line_plot(
        series,
        title=title,
        x_label="spatial frequency, 1 is Nyquist's",
        y_label="mean power",
        y_axis="log",
        max_points=limits.points_in(len(series)),
    )
    text = "Flat is white noise; photographs fall steeply. Power at high frequencies is hard to learn by diffusion."
    return chart(title, plot, series=series, text=text)


def _figures(each: Panelled) -> dict[str, float]:
    assert each.panel is not None
    return {name: number_of(value) for name, value in each.panel["figures"].items() if not isinstance(value, str)}
