"""Training runs as a page shows them: curves of all runs in the same frames, samples, settings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_vae.reporting.charts import Chart, channel_chart, chart, colour_of
from ldm_vae.reporting.columns import column_words
from ldm_vae.reporting.limits import Limits
from ldm_vae.reporting.plots import NUM_COLOURS, Series, line_plot
from ldm_vae.reporting.reading import Picture, as_written, number_of, read_lines, read_picture
from ldm_vae.reporting.tables import figure
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

CONFIG, METRICS, SKIPPED, SAMPLES = "config.yaml", "metrics.jsonl", "skipped.jsonl", "samples"
MAX_SAMPLES = 4
_SAMPLE = re.compile(r"step-(\d+)\.png")
_TOGETHER = {"logits_real": "logits", "logits_fake": "logits", "lr": "learning rate", "disc_lr": "learning rate"}
_LEFT_OUT = ("step", "not_finite", "skipped_steps", "validation/num_images")
"""Columns without a chart; the facts above the charts tell of skipped updates."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder, read."""

    name: str
    folder: Path
    lines: list[dict[str, Any]]
    """Those of metrics.jsonl."""
    config: str
    num_skipped: int
    """Images that couldn't be read."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture of originals above reconstructions, drawn while training."""

    step: int
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run, ready for a page."""

    name: str
    colour: int
    facts: list[str]
    samples: list[Sample]
    """The last one last."""
    config: str


@dataclass(frozen=True, kw_only=True)
class RunsView:
    """Runs, ready for a page."""

    runs: list[RunView]
    charts: list[Chart]
    validation: list[Chart]


def read_runs(folders: Sequence[Path], limits: Limits) -> list[Run]:
    """Return what the folders of runs hold, of their settings as much as the limits say.

    Raises:
        FieldError: A file isn't as `train` writes it.
    """
    names = [printable(folder.resolve().name) for folder in folders]
    runs, most = [], limits.settings
    for folder, name in zip(folders, names, strict=True):
        with as_written(folder / METRICS, by="train"):
            lines = read_lines(folder / METRICS) if (folder / METRICS).is_file() else []
            lines = [line | {"step": int(line["step"])} for line in lines]
        with as_written(folder / SKIPPED, by="train"):
            skipped = read_lines(folder / SKIPPED) if (folder / SKIPPED).is_file() else []
        with as_written(folder / CONFIG, by="train"):
            config = (folder / CONFIG).read_text(encoding="utf-8")
        whole = len(config) <= most
        runs.append(
            Run(
                name=name if names.count(name) == 1 else printable(str(folder)),
                folder=folder,
                lines=lines,
                config=config if whole else f"{config[:most]}\n… (the rest is in {CONFIG})",
                num_skipped=len(skipped),
            )
        )
    return runs


def view_runs(runs: Sequence[Run], limits: Limits) -> RunsView:
    """Return runs, ready for a page, their curves of as many points as the limits say."""
    return RunsView(
        runs=[_view(run, colour=colour_of(number) % NUM_COLOURS) for number, run in enumerate(runs)],
        charts=_charts(runs, limits, validation=False),
        validation=_charts(runs, limits, validation=True),
    )


def _view(run: Run, *, colour: int) -> RunView:
    facts = [f"{run.lines[-1]['step']} updates" if run.lines else "no figures yet"]
    psnr = [(number_of(line["validation/psnr"]), line["step"]) for line in run.lines if "validation/psnr" in line]
    psnr = [(value, step) for value, step in psnr if math.isfinite(value)]
    if psnr:
        best, step = max(psnr)
        facts.append(f"best validation PSNR {figure(best, 'dB')} dB, after {step} updates")
    rates = sorted(number_of(line["images_per_second"]) for line in run.lines if "images_per_second" in line)
    if rates:
        facts.append(f"{rates[len(rates) // 2]:.3g} images a second")
    lost = sum(number_of(line["skipped_steps"]) for line in run.lines if "skipped_steps" in line)
    facts.append(f"{counted(round(lost), 'update')} skipped as not finite")
    if run.num_skipped:
        facts.append(f"{counted(run.num_skipped, 'image')} skipped as unreadable")
    return RunView(name=run.name, colour=colour, facts=facts, samples=_samples(run.folder), config=run.config)


def _samples(folder: Path) -> list[Sample]:
    """Return a few of a run's sample pictures, spread over its steps, the last one among them."""
    where = folder / SAMPLES
    names = {path.name for path in where.iterdir()} if where.is_dir() else set()
    steps = sorted((int(found[1]), name) for name in names if (found := _SAMPLE.fullmatch(name)))
    count = min(MAX_SAMPLES, len(steps))
    chosen = [steps[(number + 1) * len(steps) // count - 1] for number in range(count)]
    pictures = [(step, read_picture(where, name)) for step, name in chosen]
    return [Sample(step=step, picture=picture) for step, picture in pictures if picture is not None]


def _charts(runs: Sequence[Run], limits: Limits, *, validation: bool) -> list[Chart]:
    """Return a chart for each column that a run has, in the order of the documentation."""
    words = column_words()
    there = dict.fromkeys(name for run in runs for line in run.lines for name in line if name not in _LEFT_OUT)
    columns = [name for name in there if name.startswith("validation/") == validation]
    columns.sort(key=lambda name: list(words).index(name) if name in words else len(words))
    groups: dict[str, list[str]] = {}
    for name in columns:
        groups.setdefault(_TOGETHER.get(name, name), []).append(name)
    charts = []
    for title, names in groups.items():
        first = words.get(names[0])
        text = "" if first is None else f"{first.meaning}. Healthy: {first.healthy or 'as it is set'}."
        charts += _chart(runs, names, limits, title=title.removeprefix("validation/"), text=text)
    return charts


def _chart(runs: Sequence[Run], names: Sequence[str], limits: Limits, *, title: str, text: str) -> list[Chart]:
    lists = any(isinstance(line.get(name), list) for run in runs for line in run.lines for name in names)
    series: list[Series] = []
    for number, run in enumerate(runs):
        for place, name in enumerate(names):
            points = _last_list(run, name) if lists else _points(run, name)
            label = name if len(runs) == 1 else run.name if len(names) == 1 else f"{run.name}: {name}"
            colour = colour_of(number + place if len(runs) == 1 else number + place * len(runs))
            if points:
                series.append(Series(name=label, points=points, colour=colour, marks=len(points) <= 12))
    if lists:
        return channel_chart(f"{title}, at the end", series, limits, text=text)
    most = limits.points_in(len(series))
    plot = line_plot(series, title=title, x_label="updates", y_label="", y_axis="auto", max_points=most)
    return chart(title, plot, series=series, text=text)


def _points(run: Run, name: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(line["step"]), number_of(line[name])) for line in run.lines if name in line)


def _last_list(run: Run, name: str) -> tuple[tuple[float, float], ...]:
    last: list[Any] = next((line[name] for line in reversed(run.lines) if isinstance(line.get(name), list)), [])
    return tuple((float(channel), number_of(value)) for channel, value in enumerate(last))
