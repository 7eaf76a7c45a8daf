"""Anomaly scores as a page shows them: thresholds, areas, scores in their order, the highest as pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_vae.reporting.charts import REFERENCE, Chart, chart
from ldm_vae.reporting.limits import Limits
from ldm_vae.reporting.plots import Series, line_plot
from ldm_vae.reporting.reading import Picture, as_written, number_of, read_lines, read_picture, told_lost
from ldm_vae.reporting.tables import Cell, Column, Row, Table, cells, figure
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

METRICS, SCORES, NORMAL = "metrics.json", "scores.jsonl", "normal.jsonl"


@dataclass(frozen=True, kw_only=True)
class ScoredSheet:
    """A picture beside its reconstruction and the maps of its errors."""

    picture: Picture
    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ScoresView:
    """A folder of scores, ready for a page."""

    title: str
    facts: list[str]
    notes: list[str]
    """What is missing, and what the reader has to know of likelihoods."""
    table: Table
    protocol: list[tuple[str, str]]
    sheets: list[ScoredSheet]
    """The highest scores first."""
    picture_table: Table
    charts: list[Chart]


def read_scores(folder: Path, limits: Limits) -> ScoresView:
    """Return what is in a folder of scores, as much of it as the limits say.

    Raises:
        FieldError: A file isn't as `score` writes it.
    """
    with as_written(folder / METRICS, by="score"):
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        scores, ranked_by = content["scores"], str(content["ranked_by"])
        protocol = [(str(name), printable(str(score["protocol"]))) for name, score in scores.items()]
        protocol += [(name, printable(str(content["protocol"][name]))) for name in ("threshold", "areas", "sha256")]
        table, facts, notes = _table(content), _facts(content), _notes(content)
    with as_written(folder / SCORES, by="score"):
        lines = read_lines(folder / SCORES)
        sheets = [_sheet(folder, line, ranked_by) for line in lines if "picture" in line]
        picture_table = _picture_table(lines, names=list(scores), limits=limits)
    with as_written(folder / NORMAL, by="score"):
        normal = read_lines(folder / NORMAL)
        charts = [each for name in scores for each in _curve(name, scores[name], limits, lines=lines, normal=normal)]
    lost = sum(sheet is None for sheet in sheets)
    return ScoresView(
        title=printable(folder.resolve().name),
        facts=facts,
        notes=[*notes, *told_lost(lost)],
        table=table,
        protocol=protocol,
        sheets=[sheet for sheet in sheets if sheet is not None],
        picture_table=picture_table,
        charts=charts,
    )


def _facts(content: dict[str, Any]) -> list[str]:
    labels = content["labels"]
    facts = [
        f"{counted(int(content['data']['num_pictures']), 'picture')} of {printable(str(content['settings']['data']))}",
        f"{int(content['normal']['num_pictures'])} normal ones of {printable(str(content['settings']['normal']))}",
    ]
    skipped = sum(int(content[name]["num_skipped"]) for name in ("data", "normal"))
    if skipped:
        facts.append(f"{skipped} skipped as unreadable")
    if labels["num_normal"] or labels["num_anomalies"]:
        facts.append(f"labelled: {int(labels['num_anomalies'])} anomalies, {int(labels['num_normal'])} normal")
    return [*facts, printable(str(content["protocol"]["pictures"]))]


def _notes(content: dict[str, Any]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, reason in content["left_out"].items():
        reasons.setdefault(printable(str(reason)), []).append(str(name))
    notes = [f"Without {', '.join(names)}: {reason}." for reason, names in reasons.items()]
    if "negative_elbo" in content["scores"]:
        notes.append(f"Of negative_elbo: {printable(str(content['protocol']['paradox']))}.")
    return notes


def _table(content: dict[str, Any]) -> Table:
    scores = content["scores"].values()
    has_areas = any("auroc" in score for score in scores)
    columns = [
        Column(name=f"threshold, quantile {number_of(content['protocol']['quantile']):g} of the normal"),
        Column(name="normal above"),
        Column(name="above"),
    ]
    filled = [
        cells([number_of(score[key]) for score in scores]) for key in ("threshold", "normal_above", "data_above")
    ]
    for key in ("auroc", "auprc") if has_areas else ():
        columns.append(Column(name=key.upper(), better="higher"))
        filled.append(cells([number_of(score[key]) if key in score else None for score in scores], better="higher"))
    rows = [
        Row(name=f"{name}, {score['unit']}" if score["unit"] else str(name), cells=[column[i] for column in filled])
        for i, (name, score) in enumerate(content["scores"].items())
    ]
    return Table(caption="Scores: the higher, the more unlike normal", first="score", columns=columns, rows=rows)


def _sheet(folder: Path, line: dict[str, Any], ranked_by: str) -> ScoredSheet | None:
    picture = read_picture(folder, str(line["picture"]))
    if picture is None:
        return None
    said = [f"{ranked_by} {figure(number_of(line['scores'][ranked_by]))}"]
    said.append("above the threshold" if line["above"][ranked_by] else "below the threshold")
    if line["label"] is not None:
        said.append(f"labelled {printable(str(line['label']))}")
    return ScoredSheet(picture=picture, name=printable(str(line["name"])), text=" · ".join(said))


def _picture_table(lines: Sequence[dict[str, Any]], *, names: Sequence[str], limits: Limits) -> Table:
    shown = lines[: max(1, limits.rows // 2)]
    rows = []
    for line in shown:
        label = "" if line["label"] is None else printable(str(line["label"]))
        values = [number_of(line["scores"][name]) for name in names]
        marked = [
            f"{figure(value)}{' ▲' if line['above'][name] else ''}" for name, value in zip(names, values, strict=True)
        ]
        sortable = [
            Cell(text=text, value=value if math.isfinite(value) else "")
            for text, value in zip(marked, values, strict=True)
        ]
        rows.append(Row(name=printable(str(line["name"])), cells=[Cell(text=label, value=label), *sortable]))
    which = (
        f"The first {len(shown)} of {len(lines)} pictures"
        if len(shown) < len(lines)
        else counted(len(lines), "picture")
    )
    caption = f"{which}, the highest first; ▲: above the threshold"
    columns = [Column(name="label"), *(Column(name=name) for name in names)]
    return Table(caption=caption, first="picture", columns=columns, rows=rows)


def _curve(
    name: str,
    score: dict[str, Any],
    limits: Limits,
    *,
    lines: Sequence[dict[str, Any]],
    normal: Sequence[dict[str, Any]],
) -> list[Chart]:
    """Return the scores of both sets in their order, with the threshold."""
    series = [
        Series(name=title, points=_in_order([number_of(line["scores"][name]) for line in part]), colour=colour)
        for title, part, colour in (("data", lines, 0), ("normal pictures", normal, 1))
    ]
    level = number_of(score["threshold"])
    series.append(Series(name="threshold", points=((0.0, level), (1.0, level)), colour=REFERENCE))
    label, most = str(score["unit"]) or name, limits.points_in(len(series))
    plot = line_plot(series, title=name, x_label="part of the pictures", y_label=label, max_points=most)
    text = "Each set's scores, the lowest left. Where data leave the normal pictures' line, they are unlike them."
    return chart(name, plot, series=series, text=text)


def _in_order(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    finite = sorted(value for value in values if math.isfinite(value))
    return tuple(((i + 0.5) / len(finite), value) for i, value in enumerate(finite))
