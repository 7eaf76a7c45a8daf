"""`report`: one HTML page of what evaluations, probes, scores and runs found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_vae.config.commands.report import ReportOptions
from ldm_vae.config.rules import FieldError, require
from ldm_vae.reporting.comparison import ComparisonView, view_comparison
from ldm_vae.reporting.evaluations import METRICS as EVALUATION_METRICS
from ldm_vae.reporting.evaluations import read_evaluations
from ldm_vae.reporting.limits import Limits, is_small
from ldm_vae.reporting.page import FIRST_BYTES, Page, render
from ldm_vae.reporting.probes import read_probe
from ldm_vae.reporting.reading import as_written
from ldm_vae.reporting.runs import METRICS as RUN_METRICS
from ldm_vae.reporting.runs import read_runs, view_runs
from ldm_vae.reporting.scores import read_scores
from ldm_vae.system.files import write_whole
from ldm_vae.system.output_kinds import (
    EVALUATION,
    PROBE,
    QUICKSTART,
    REPORT,
    RUN,
    SCORES,
    OutputKind,
    is_marked,
    output_kind,
)
from ldm_vae.system.text import printable


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """Where the page is; `str()` is what the command line prints."""

    path: Path

    def __str__(self) -> str:
        """Return the page's path."""
        return f"report: {self.path}"


def report(options: ReportOptions) -> ReportSummary:
    """Write a page of the folders that `options` names.

    Raises:
        ValueError: In one line: a folder is none of evaluate, probe, score or train, a file of theirs is damaged, or
            another file is where the page would be.
    """
    output = None if options.output is None else Path(options.output)
    return ReportSummary(path=write_report([Path(folder) for folder in options.outputs], output=output))


def write_report(folders: Sequence[Path], *, output: Path | None = None) -> Path:
    """Write a page of evaluations, probes, scores, runs and quickstarts; an earlier page is replaced.

    Args:
        folders: Where the results are.
        output: The HTML file; None: `REPORT` in the first folder.

    Returns:
        The HTML file.

    Raises:
        ValueError: As `report`.
    """
    path = (folders[0] / REPORT if output is None else output).expanduser()
    require(not path.is_dir(), f"<output> {printable(str(path))} is a folder; name an HTML file")
    require(
        not path.exists() or is_report(path),
        f"<output> {printable(str(path))} is there and is no report of ldm-vae; name another file",
    )
    place = next(parent for parent in path.absolute().parents if parent.exists())
    require(place.is_dir(), f"<output> {printable(str(path))} can't be made: {printable(str(place))} is a file")
    content = _rendered([folder.expanduser() for folder in folders])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.encode("utf-8"))
    return path


def _rendered(folders: Sequence[Path]) -> str:
    """Return the page, which shows less of all where it would be large beside its pictures."""
    limits = Limits()
    html = render(_read(folders, limits))
    while limits.can_be_less and not is_small(html):
        limits = limits.halved()
        html = render(_read(folders, limits))
    return html


def _read(folders: Sequence[Path], limits: Limits) -> Page:
    """Return what the folders hold, of each kind together."""
    found = _sorted([part for folder in folders for part in _parts(folder)])
    runs = found[RUN]
    views: list[ComparisonView] = []
    for comparison in read_evaluations(found[EVALUATION]):
        with as_written(comparison.subjects[0].folder / EVALUATION_METRICS, by="evaluate"):
            views.append(view_comparison(comparison, limits))
    read = read_runs(runs, limits)
    with as_written((runs[0] if runs else Path()) / RUN_METRICS, by="train"):
        runs_view = view_runs(read, limits) if read else None
    return Page(
        title=", ".join(dict.fromkeys(printable(folder.resolve().name) for folder in folders)),
        comparisons=views,
        probes=[read_probe(folder, limits) for folder in found[PROBE]],
        scores=[read_scores(folder, limits) for folder in found[SCORES]],
        runs=runs_view,
    )


def _parts(folder: Path) -> list[Path]:
    """Return a folder, or in place of a quickstart's those within it.

    Raises:
        FieldError: A quickstart has got to neither.
    """
    if not is_marked(folder, QUICKSTART):
        return [folder]
    parts = [path for path in (folder / "evaluation", folder / "run") if path.is_dir()]
    require(bool(parts), f"<outputs>: {printable(str(folder))} is a quickstart that hasn't begun to train")
    return parts


def _sorted(folders: Sequence[Path]) -> dict[OutputKind, list[Path]]:
    """Return the folders of each kind that a page shows, each once."""
    shown: dict[OutputKind, list[Path]] = {kind: [] for kind in (PROBE, RUN, SCORES, EVALUATION)}
    once: dict[Path, Path] = {}
    for folder in folders:
        once.setdefault(folder.resolve(), folder)
    for folder in once.values():
        kind = next((kind for kind in shown if is_marked(folder, kind)), None)
        if kind is None:
            raise FieldError(
                f"<outputs>: {printable(str(folder))} {_told_kind(folder)}; name folders that `ldm-vae evaluate`, "
                f"`ldm-vae probe`, `ldm-vae score` or `ldm-vae train` wrote"
            )
        shown[kind].append(folder)
    return shown


def _told_kind(folder: Path) -> str:
    """Return what a folder is that has no place on a page."""
    if not folder.is_dir():
        return "is no folder"
    kind = output_kind(folder)
    return "holds no results" if kind is None else f"is {kind.what}, which has no page"


def is_report(path: Path) -> bool:
    """Whether a file is a page that `report` made."""
    try:
        with open(path, "rb") as file:
            return file.read(len(FIRST_BYTES)) == FIRST_BYTES
    except OSError:
        return False
