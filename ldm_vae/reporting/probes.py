"""Probes as a page shows them: scores of samples with their spread, verdicts, samples, the panel."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_vae.config.rules import require
from ldm_vae.reporting.charts import Chart, chart, colour_of
from ldm_vae.reporting.limits import Limits
from ldm_vae.reporting.panels import Panelled, panel_charts, panel_table
from ldm_vae.reporting.plots import Interval, interval_plot
from ldm_vae.reporting.reading import Picture, as_written, number_of, read_picture
from ldm_vae.reporting.tables import Cell, Column, Row, Table, cells
from ldm_vae.system.text import printable

METRICS, SAMPLES = "metrics.json", "samples.png"


@dataclass(frozen=True, kw_only=True)
class ProbeView:
    """A probe, ready for a page."""

    title: str
    facts: list[str]
    names: list[tuple[str, int]]
    """The autoencoders with their colours."""
    table: Table | None
    """None where no diffusion model was trained."""
    protocol: str
    """As JSON, for who asks."""
    samples: Picture | None
    charts: list[Chart]
    panel: Table | None


def read_probe(folder: Path, limits: Limits) -> ProbeView:
    """Return what is in a probe's folder, as much of it as the limits say.

    Raises:
        FieldError: The probe isn't finished, or the file isn't as `probe` writes it.
    """
    shown = printable(str(folder))
    require(
        (folder / METRICS).exists(), f"<outputs>: {shown} is a probe that isn't finished; the same command goes on"
    )
    with as_written(folder / METRICS, by="probe"):
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        entries, scores = content["autoencoders"], [str(name) for name in content["scores"]]
        panels = [
            Panelled(name=printable(str(entry["name"])), colour=colour_of(number), panel=entry["panel"])
            for number, entry in enumerate(entries)
        ]
        return ProbeView(
            title=printable(folder.resolve().name),
            facts=[
                f"budget {content['budget']}, on {content['device']}",
                f"reference {printable(str(content['reference']))}",
                f"protocol {str(content['protocol']['sha256'])[:12]}",
                *([f"{len(content['skipped'])} images skipped as unreadable"] if content["skipped"] else []),
            ],
            names=[(each.name, each.colour) for each in panels],
            table=_table(entries, scores=scores) if scores else None,
            protocol=json.dumps(content["protocol"], indent=1, ensure_ascii=False),
            samples=read_picture(folder, SAMPLES),
            charts=[*(_scores(entries, scores[0]) if scores else []), *panel_charts(panels, limits)],
            panel=panel_table(panels, measures=content.get("measures", {})),
        )


def _table(entries: Sequence[dict[str, Any]], *, scores: Sequence[str]) -> Table:
    columns, filled = [Column(name="latent")], [[Cell(text=_shape(entry), value=_shape(entry)) for entry in entries]]
    for score in scores:
        columns.append(Column(name=score, better="lower"))
        means = cells([number_of(entry["scores"][score]["mean"]) for entry in entries], better="lower")
        spreads = [number_of(entry["scores"][score]["std"]) for entry in entries]
        filled.append(
            [
                Cell(text=f"{mean.text} ± {spread:.2g}", value=mean.value, best=mean.best)
                for mean, spread in zip(means, spreads, strict=True)
            ]
        )
    columns += [Column(name=f"{scores[0]} of reconstructions", better="lower"), Column(name="beside the reference")]
    filled.append(cells([number_of(entry["reconstruction"].get(scores[0])) for entry in entries], better="lower"))
    filled.append([_verdict(entry["scores"][scores[0]]) for entry in entries])
    rows = [
        Row(name=printable(str(entry["name"])), cells=[column[i] for column in filled], colour=colour_of(i))
        for i, entry in enumerate(entries)
    ]
    return Table(caption="Diffusion models on the latents", first="autoencoder", columns=columns, rows=rows)


def _shape(entry: dict[str, Any]) -> str:
    return " × ".join(str(int(side)) for side in entry["latent_shape"])


def _verdict(score: dict[str, Any]) -> Cell:
    verdict = printable(str(score["verdict"]))
    if verdict == "reference":
        return Cell(text=verdict, value=verdict)
    margin = number_of(score["margin"])
    beside = f"{number_of(score['difference']):+.4g}" + ("" if math.isnan(margin) else f" ± {margin:.2g}")
    return Cell(text=f"{verdict}, {beside}", value=verdict)


def _scores(entries: Sequence[dict[str, Any]], score: str) -> list[Chart]:
    rows = [
        Interval(
            name=printable(str(entry["name"])),
            value=number_of(entry["scores"][score]["mean"]),
            margin=number_of(entry["scores"][score]["std"]),
            colour=colour_of(number),
        )
        for number, entry in enumerate(entries)
    ]
    seeds = len(entries[0]["trainings"])
    text = f"Mean and standard deviation over {seeds} trainings of each; lower is better."
    return chart(
        f"{figure_name(score)} of samples", interval_plot(rows, title=score, x_label=score), series=[], text=text
    )


def figure_name(score: str) -> str:
    """Return a score's name in words: `fd_inception` is the Frechet distance in Inception's features."""
    kind, _, network = score.partition("_")
    words = {"fd": "Fréchet distance", "kd": "Kernel distance"}.get(kind, kind)
    return f"{words} ({network})" if network else words
