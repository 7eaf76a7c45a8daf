"""One picture of an evaluation, with what each autoencoder makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm_vae.reporting.charts import colour_of
from ldm_vae.reporting.evaluations import Comparison, Subject
from ldm_vae.reporting.plots import NUM_COLOURS
from ldm_vae.reporting.reading import Picture, number_of, read_picture, read_sheet, read_strip
from ldm_vae.reporting.tables import figure
from ldm_vae.system.text import printable

_FOLDER = "pictures"
_COLUMNS = 16
"""Latent channels in a row, where they stand in one picture."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A latent channel of a picture."""

    picture: Picture
    text: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """What an autoencoder makes of a picture."""

    number: int
    """Which of the comparison's autoencoders it is."""
    name: str
    colour: int
    picture: Picture | None
    """None where it isn't kept."""
    text: str
    """Its figures, for people."""
    channels: list[Channel]
    sheet: Picture | None
    """All channels in one picture, where they don't stand by themselves."""
    sheet_text: str


@dataclass(frozen=True, kw_only=True)
class PictureView:
    """A picture, ready for a page."""

    index: int
    name: str
    size: str
    """Width and height, and what is kept of them."""
    original: Picture | None
    versions: list[Version]
    figures: str
    """The figures of all autoencoders as JSON: a list of objects, null for what isn't finite."""
    lost: int
    """Files that should be there and can't be read."""


def read_picture_view(
    index: int, comparison: Comparison, *, metrics: Sequence[str], apart: bool = True
) -> PictureView:
    """Return a picture that at least one of the autoencoders' folders keeps.

    Args:
        index: The image's number.
        comparison: What it is part of.
        metrics: Figures that are told of it.
        apart: Whether each latent channel is a picture by itself, or those of an autoencoder stand in one.
    """
    holders = [subject for subject in comparison.subjects if index in subject.kept]
    stem = f"{'whole' if comparison.resolution is None else comparison.resolution}-{index:06d}"
    original = read_picture(holders[0].folder, f"{_FOLDER}/{stem}-original.webp")
    versions = [
        _version(number, subject, index, stem=stem, metrics=metrics, apart=apart)
        for number, subject in enumerate(comparison.subjects)
    ]
    lost = sum(version.picture is None for version in versions if comparison.subjects[version.number] in holders)
    width, height = (int(side) for side in comparison.images[index]["size"])
    size = f"{width} × {height}"
    if original is not None and (original.width, original.height) != (width, height):
        size = f"middle {original.width} × {original.height} of {size}"
    values = [
        {metric: _finite(subject.figures.get(index, {}).get(metric)) for metric in metrics}
        for subject in comparison.subjects
    ]
    return PictureView(
        index=index,
        name=printable(str(comparison.images[index]["name"])),
        size=size,
        original=original,
        versions=versions,
        figures=json.dumps(values),
        lost=lost + (original is None),
    )


def _version(number: int, subject: Subject, index: int, *, stem: str, metrics: Sequence[str], apart: bool) -> Version:
    figures = subject.figures.get(index, {})
    said = [f"{figure(figures[name], 'dB')} dB" if name == "psnr" else f"{name} {figure(figures[name])}"
            for name in metrics if name in figures]  # fmt: skip
    kept = index in subject.kept
    picture = read_picture(subject.folder, f"{_FOLDER}/{stem}-{subject.position}.webp") if kept else None
    count = len(subject.record["channels"]["std"])
    strip = f"{_FOLDER}/{stem}-{subject.position}-latent.png"
    sheet = read_sheet(subject.folder, strip, count=count, columns=_COLUMNS) if kept and not apart else None
    return Version(
        number=number,
        name=subject.name,
        colour=colour_of(number) % NUM_COLOURS,
        picture=picture,
        text=" · ".join(said) if kept else "not kept in its folder",
        channels=_channels(subject, strip) if kept and apart else [],
        sheet=sheet,
        sheet_text=f"channels 0 to {count - 1}, {min(count, _COLUMNS)} in a row",
    )


def _channels(subject: Subject, name: str) -> list[Channel]:
    said: dict[str, Any] = subject.record["channels"]
    channels = []
    for number, picture in enumerate(read_strip(subject.folder, name, count=len(said["std"]))):
        words = [f"channel {number}"]
        if "kl" in said:
            words.append(f"KL {number_of(said['kl'][number]):.3g}")
        channels.append(
            Channel(picture=picture, text=" · ".join([*words, f"std {number_of(said['std'][number]):.3g}"]))
        )
    return channels


def _finite(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
