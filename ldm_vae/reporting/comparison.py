"""Evaluations as a page shows them: figures, single pictures from the worst on, plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm_vae.reporting.charts import REFERENCE, Chart, channel_chart, chart, colour_of
from ldm_vae.reporting.evaluations import Comparison, Subject
from ldm_vae.reporting.limits import Limits
from ldm_vae.reporting.panels import Panelled, panel_charts, panel_table
from ldm_vae.reporting.pictures import PictureView, read_picture_view
from ldm_vae.reporting.plots import Series, line_plot
from ldm_vae.reporting.reading import number_of, told_lost
from ldm_vae.reporting.tables import Column, Row, Table, better_of, cells
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

_UNITS = {"psnr": "dB"}
_LEFT_OUT = ("kl", "latent_mean")
"""Metrics that say what others say: bits_per_dim, and the scaling."""


@dataclass(frozen=True, kw_only=True)
class ComparisonView:
    """Autoencoders on the same images, ready for a page."""

    title: str
    facts: list[str]
    """What the reader has to know before the figures."""
    notes: list[str]
    """What is missing."""
    names: list[tuple[str, int]]
    """The autoencoders with their colours."""
    table: Table
    protocol: list[tuple[str, str]]
    """Each metric with how it was measured."""
    metrics: list[Column]
    """Those of single images, by which pictures are put in order."""
    pictures: list[PictureView]
    """The worst first."""
    picture_table: Table | None
    charts: list[Chart]
    panel: Table | None
    panel_charts: list[Chart]


def _title(size: int | None, *, is_sound: bool) -> str:
    if is_sound:
        return f"Mels of sounds, {size} frames"
    return "Whole pictures" if size is None else f"Pictures of {size} × {size}"


def view_comparison(comparison: Comparison, limits: Limits) -> ComparisonView:
    """Return as much of a comparison as the limits say, ready for a page.

    Raises:
        ValueError: Or KeyError, TypeError and their like: what was read isn't as it was written.
    """
    first, subjects = comparison.first, comparison.subjects
    size = comparison.resolution
    facts = [f"{counted(first['num_images'], 'image')} of {comparison.data}"]
    if first["num_skipped"]:
        facts.append(f"{first['num_skipped']} skipped as unreadable")
    order = _worst_first(comparison)
    metrics = _picture_metrics(subjects)
    shown = [index for index in order if any(index in subject.kept for subject in subjects)]
    panels = [
        Panelled(name=subject.name, colour=colour_of(number), panel=subject.record.get("panel"))
        for number, subject in enumerate(subjects)
    ]
    measures = next((subject.measures for subject in subjects if subject.measures), {})
    first_shown = shown[: max(1, limits.reconstructions // len(subjects))]
    channels = sum(len(subject.record["channels"]["std"]) for subject in subjects) * len(first_shown)
    apart = channels <= limits.channels
    pictures = [read_picture_view(index, comparison, metrics=metrics, apart=apart) for index in first_shown]
    notes = [*comparison.notes, *_missing(pictures, num_kept=len(shown))]
    return ComparisonView(
        title=_title(size, is_sound="mel_frames" in first["protocol"]),
        facts=[*facts, printable(str(first["protocol"]["pictures"]))],
        notes=notes,
        names=[(subject.name, colour_of(number)) for number, subject in enumerate(subjects)],
        table=_table(subjects),
        protocol=_protocol(subjects),
        metrics=[Column(name=metric, better=better_of(metric)) for metric in metrics],
        pictures=[picture for picture in pictures if picture.original is not None],
        picture_table=_picture_table(comparison, order, metrics=metrics, limits=limits),
        charts=[
            *_quality(subjects, limits),
            *_rate_distortion(subjects),
            *_spectra(subjects, limits),
            *_channels(subjects, limits),
        ],
        panel=panel_table(panels, measures=measures),
        panel_charts=panel_charts(panels, limits),
    )


def _missing(pictures: Sequence[PictureView], *, num_kept: int) -> list[str]:
    """Return what the reader has to know of pictures that aren't shown."""
    cut = f"The worst {len(pictures)} of the {num_kept} pictures that are kept are shown."
    return [*([cut] if len(pictures) < num_kept else []), *told_lost(sum(picture.lost for picture in pictures))]


def _worst_first(comparison: Comparison) -> list[int]:
    """Return the numbers of all images, by rising PSNR of the first autoencoder; those without a number first."""
    figures = comparison.subjects[0].figures

    def order(index: int) -> tuple[float, int]:
        psnr = figures.get(index, {}).get("psnr", math.inf)
        return (-math.inf if math.isnan(psnr) else psnr), index

    return sorted(comparison.images, key=order)


def _picture_metrics(subjects: Sequence[Subject]) -> list[str]:
    names = dict.fromkeys(name for subject in subjects for each in subject.figures.values() for name in each)
    return [name for name in names if better_of(name)]


def _table(subjects: Sequence[Subject]) -> Table:
    measured = dict.fromkeys(name for subject in subjects for name in subject.record["metrics"])
    names = [name for name in measured if name not in _LEFT_OUT]
    head, columns = [], []
    for name in names:
        scores = [subject.record["metrics"].get(name) for subject in subjects]
        unit = next(str(score["unit"]) for score in scores if score is not None)
        head.append(Column(name=name, unit=unit, better=better_of(name)))
        values = [None if score is None else number_of(score["value"]) for score in scores]
        columns.append(cells(values, unit=unit, better=better_of(name)))
    rows = [
        Row(name=subject.name, cells=[column[number] for column in columns], colour=colour_of(number))
        for number, subject in enumerate(subjects)
    ]
    return Table(caption="Means over all images", first="autoencoder", columns=head, rows=rows)


def _protocol(subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    said: dict[str, str] = {}
    for subject in subjects:
        for name, score in subject.record["metrics"].items():
            said.setdefault(name, printable(str(score["protocol"])))
    return [*said.items(), ("SHA-256 of the protocol", str(subjects[0].record["protocol"]["sha256"]))]


def _picture_table(
    comparison: Comparison, order: Sequence[int], *, metrics: Sequence[str], limits: Limits
) -> Table | None:
    if not order:
        return None
    subjects, several = comparison.subjects, len(comparison.subjects) > 1
    shown = order[: min(limits.rows, limits.cells // max(1, len(subjects) * len(metrics)) + 1)]
    head, columns = [], []
    for subject in subjects:
        for metric in metrics:
            unit = _UNITS.get(metric, "")
            name = f"{metric}, {subject.name}" if several else metric
            head.append(Column(name=name, unit=unit, better=better_of(metric)))
            columns.append(cells([subject.figures.get(index, {}).get(metric) for index in shown], unit=unit))
    kept = {index for subject in subjects for index in subject.kept}
    rows = [
        Row(
            name=printable(str(comparison.images[index]["name"])),
            cells=[column[number] for column in columns],
            picture=index if index in kept else None,
        )
        for number, index in enumerate(shown)
    ]
    count = len(comparison.images)
    which = f"The worst {len(shown)} of {count} images" if len(shown) < count else f"All {counted(count, 'image')}"
    caption = f"{which}, worst first" if count > 1 else "The image"
    return Table(caption=caption, first="image", columns=head, rows=rows)


# Plots


def _quality(subjects: Sequence[Subject], limits: Limits) -> list[Chart]:
    """Return the PSNR of each image, in the order of each autoencoder."""
    series = []
    for number, subject in enumerate(subjects):
        values = sorted(figures["psnr"] for figures in subject.figures.values() if math.isfinite(figures["psnr"]))
        points = tuple((100 * (rank + 0.5) / len(values), value) for rank, value in enumerate(values))
        series.append(Series(name=subject.name, points=points, colour=colour_of(number), marks=len(values) <= 30))
    if all(len(each.points) < 2 for each in series):
        return []
    title = "PSNR of single images, worst first"
    most = limits.points_in(len(series))
    plot = line_plot(series, title=title, x_label="images, %", y_label="PSNR, dB", max_points=most)
    text = "A curve that starts far below its middle has a few images that fail; look at them above."
    return chart(title, plot, series=series, text=text)


def _rate_distortion(subjects: Sequence[Subject]) -> list[Chart]:
    series = []
    for number, subject in enumerate(subjects):
        metrics = subject.record["metrics"]
        if "bits_per_dim" in metrics:
            point = (number_of(metrics["bits_per_dim"]["value"]), number_of(metrics["psnr"]["value"]))
            series.append(Series(name=subject.name, points=(point,), colour=colour_of(number), marks=True))
    if len(series) < 2:
        return []
    title = "Rate and distortion"
    plot = line_plot(series, title=title, x_label="rate, bits an image element", y_label="PSNR, dB")
    text = "Up and to the left is better: more of the picture for fewer bits."
    return chart(title, plot, series=series, text=text)


def _spectra(subjects: Sequence[Subject], limits: Limits) -> list[Chart]:
    """Return the power of originals and reconstructions; of the first folder alone, whose pictures are the same."""
    spectra = subjects[0].spectra
    if spectra is None:
        return []
    series = [_spectrum("original", spectra["original"], colour=REFERENCE)]
    for number, subject in enumerate(subjects):
        if subject.folder == subjects[0].folder:
            power = spectra["reconstructions"][subject.position]
            series.append(_spectrum(subject.name, power, colour=colour_of(number)))
    title = "Spectrum of originals and reconstructions"
    plot = line_plot(
        series,
        title=title,
        x_label="spatial frequency, 1 is Nyquist's",
        y_label="mean power",
        y_axis="log",
        max_points=limits.points_in(len(series)),
    )
    text = "Over the pictures shown above. Below the original a reconstruction is blurred, above it holds artefacts."
    return chart(title, plot, series=series, text=text)


def _spectrum(name: str, power: Sequence[Any], *, colour: int) -> Series:
    """Return rings of rising frequency as points; the last ring ends at the corner, sqrt(2) times Nyquist's."""
    step = math.sqrt(2) / len(power)
    points = tuple(((ring + 0.5) * step, number_of(value)) for ring, value in enumerate(power))
    return Series(name=name, points=points, colour=colour)


def _channels(subjects: Sequence[Subject], limits: Limits) -> list[Chart]:
    series = [
        Series(
            name=subject.name,
            points=tuple((i, number_of(value)) for i, value in enumerate(subject.record["channels"]["kl"])),
            colour=colour_of(number),
        )
        for number, subject in enumerate(subjects)
        if "kl" in subject.record["channels"]
    ]
    title = "Rate of each latent channel"
    text = "A channel near 0 has collapsed: it tells nothing of the picture."
    return channel_chart(title, series, limits, y_label="KL, nats an element", text=text)
