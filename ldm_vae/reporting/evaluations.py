"""What `evaluate` wrote, read back: autoencoders that were measured on the same images alike stand together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm_vae.reporting.reading import as_written, number_of, read_lines
from ldm_vae.system.text import printable

METRICS, PER_PICTURE = "metrics.json", "per_picture.jsonl"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An autoencoder, measured at one size of pictures."""

    name: str
    folder: Path
    """The evaluation's."""
    position: int
    """Which of its folder's autoencoders it is."""
    record: dict[str, Any]
    """Its evaluation, as metrics.json has it."""
    figures: dict[int, dict[str, float]]
    """Those of single images, by the image's number."""
    kept: frozenset[int]
    """Numbers of the images whose pictures are in the folder."""
    spectra: dict[str, Any] | None
    """Power of the pictures' spatial frequencies: of the originals, and of each autoencoder's reconstructions."""
    measures: dict[str, Any]
    """What the panel's figures are, by name."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Autoencoders that were measured on the same images alike."""

    resolution: int | None
    """Side of the pictures; None for whole ones."""
    data: str
    key: tuple[str, ...]
    """What comparisons share whose figures compare: size, images and protocol."""
    subjects: tuple[Subject, ...]
    images: dict[int, dict[str, Any]]
    """The images by number, as per_picture.jsonl has them: name, size, what is kept."""
    notes: tuple[str, ...] = ()
    """What is missing, for the reader."""

    @property
    def first(self) -> dict[str, Any]:
        """The first autoencoder's evaluation, for what all share."""
        return self.subjects[0].record


def read_evaluations(folders: Sequence[Path]) -> list[Comparison]:
    """Return comparisons of all that the folders hold, those of the same images and protocol in one.

    Raises:
        FieldError: A file isn't as `evaluate` writes it.
    """
    comparisons: dict[tuple[str, ...], Comparison] = {}
    for folder in folders:
        for comparison in _read(folder):
            before = comparisons.get(comparison.key)
            comparisons[comparison.key] = comparison if before is None else _joined(before, comparison)
    return list(comparisons.values())


def _read(folder: Path) -> list[Comparison]:
    with as_written(folder / METRICS, by="evaluate"):
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        measured: dict[int | None, list[dict[str, Any]]] = {}
        for record in content["evaluations"]:
            measured.setdefault(record["resolution"] and int(record["resolution"]), []).append(record)
        keys = {size: _key(records[0]) for size, records in measured.items()}
        names = {size: [printable(record["name"]) for record in records] for size, records in measured.items()}
        spectra = {each["resolution"]: each["spectra"] for each in content.get("pictures", [])}
        data, measures = printable(content["options"]["data"]), dict(content.get("measures", {}))
    there = (folder / PER_PICTURE).is_file()
    notes = () if there else (f"{printable(str(folder))} was written without figures and pictures of single images.",)
    comparisons = []
    with as_written(folder / PER_PICTURE, by="evaluate"):
        lines = read_lines(folder / PER_PICTURE) if there else []
        for size, records in measured.items():
            images = {int(line["index"]): line for line in lines if line["resolution"] == size}
            subjects = tuple(
                Subject(
                    name=name,
                    folder=folder,
                    position=position,
                    record=record,
                    figures={index: _figures(line["figures"][position]) for index, line in images.items()},
                    kept=frozenset(index for index, line in images.items() if line["kept"] is not None),
                    spectra=spectra.get(size),
                    measures=measures,
                )
                for position, (name, record) in enumerate(zip(names[size], records, strict=True))
            )
            comparisons.append(
                Comparison(resolution=size, data=data, key=keys[size], subjects=subjects, images=images, notes=notes)
            )
    return comparisons


def _key(record: dict[str, Any]) -> tuple[str, ...]:
    """Return what evaluations share whose figures compare."""
    return str(record["resolution"]), str(record["data_fingerprint"]), str(record["protocol"]["sha256"])


def _figures(line: dict[str, Any]) -> dict[str, float]:
    """Return an image's figures; NaN for one that isn't finite."""
    return {str(name): number_of(value) for name, value in line.items() if not isinstance(value, str)}


def _joined(before: Comparison, new: Comparison) -> Comparison:
    """Return a comparison with the autoencoders of another that it hasn't yet, told apart by where they are from."""
    known = {subject.record["vae_fingerprint"] for subject in before.subjects}
    names = {subject.name for subject in before.subjects}
    subjects, again = list(before.subjects), []
    for subject in new.subjects:
        if subject.record["vae_fingerprint"] in known:
            again.append(subject.name)
        else:
            where = f"{subject.name} ({printable(str(subject.folder))})"
            subjects.append(replace(subject, name=where if subject.name in names else subject.name))
    notes = [*before.notes, *new.notes]
    if again:
        folder = printable(str(new.subjects[0].folder))
        notes.append(f"{', '.join(again)} of {folder} is shown once, as it was measured in a folder named before.")
    return replace(before, subjects=tuple(subjects), images=new.images | before.images, notes=tuple(notes))
