"""What an evaluation found, as the command line prints it and as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.evaluation.grid import save_grid
from ldm_vae.evaluation.measure import Comparison
from ldm_vae.evaluation.pictures import PictureLog, write_pictures
from ldm_vae.evaluation.results import Evaluation, package_versions
from ldm_vae.evaluation.tables import format_table, more_tables
from ldm_vae.images.guard import SkippedImage
from ldm_vae.panel.measures import describe_measures
from ldm_vae.system.files import write_whole
from ldm_vae.system.strict_json import dump_json
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

METRICS, TABLE = "metrics.json", "table.md"


@dataclass(frozen=True, kw_only=True)
class MeasuredSize:
    """All autoencoders, measured on images of one size."""

    resolution: int | None
    """Side of the square pictures, in pixels; None: whole pictures."""
    comparison: Comparison
    log: PictureLog
    """Figures and pictures of single images, of all processes."""
    evaluations: list[Evaluation]
    """One an autoencoder."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSummary:
    """What `evaluate` found and where it is; `str()` is what the command line prints."""

    evaluations: list[Evaluation]
    """An entry each resolution and autoencoder."""
    skipped: list[SkippedImage]
    metrics: Path
    table: Path
    grids: list[Path]
    report: Path | None
    """None where none was asked for."""
    noun: str = "image"
    """What was reconstructed: images or sounds."""

    @property
    def problem(self) -> str | None:
        """Return, in one line, which autoencoders gave no finite figures, and how; None where all are there."""
        clauses = []
        for evaluation in self.evaluations:
            if evaluation.num_nonfinite or evaluation.nonfinite_metrics:
                size = "" if evaluation.resolution is None else f" at {evaluation.resolution}"
                clauses.append(
                    f"{evaluation.vae}{size}: {evaluation.num_nonfinite} of {evaluation.num_images} reconstructions "
                    f"hold NaN or infinity; no figure for {', '.join(evaluation.nonfinite_metrics) or 'these'}"
                )
        return f"vae: {'; '.join(clauses)}" if clauses else None

    def __str__(self) -> str:
        """Return the table and where the files are."""
        lines = [format_table(self.evaluations), *(f"\n{table}\n" for table in more_tables(self.evaluations))]
        if self.skipped:
            first = self.skipped[0]
            number = counted(len(self.skipped), self.noun)
            lines.append(f"{number} skipped, listed in {self.metrics}; the first: {first}")
        lines += [f"metrics: {self.metrics}", f"table: {self.table}"]
        lines += [f"pictures: {grid}" for grid in self.grids]
        return "\n".join(lines if self.report is None else [*lines, f"report: {self.report}"])


def write_evaluation(
    folder: Path,
    summary: EvaluateSummary,
    sizes: Sequence[MeasuredSize],
    *,
    options: EvaluateOptions,
    perceptual: str | None,
    device: str,
) -> None:
    """Write pictures, grids, table.md and metrics.json into a folder.

    Args:
        folder: What becomes the output.
        summary: The evaluation.
        sizes: What it was made of.
        options: The command's.
        perceptual: Name of the perceptual distance.
        device: Type of device that measured.
    """
    kept = [
        write_pictures(
            folder,
            size.log,
            resolution=size.resolution,
            latents=[measurement.summary.latents for measurement in size.comparison.measurements],
            perceptual=perceptual,
        )
        for size in sizes
    ]
    titles = ["original", *(printable(evaluation.name) for evaluation in summary.evaluations[: len(options.vae)])]
    for path, size in zip(summary.grids, sizes, strict=False):
        save_grid(folder / path.name, size.comparison.pictures, titles=titles)
    tables = [format_table(summary.evaluations), *more_tables(summary.evaluations)]
    write_whole(folder / TABLE, ("\n\n".join(tables) + "\n").encode())
    content = {
        "kind": "evaluations",  # within the first bytes, by which the folder is known to be an evaluation's
        "options": asdict(options),
        "device": device,
        "versions": package_versions(),
        "evaluations": [asdict(evaluation) for evaluation in summary.evaluations],
        "measures": describe_measures() if options.panel else {},
        "pictures": kept,
        "skipped": [asdict(skipped) for skipped in summary.skipped],
    }
    write_whole(folder / METRICS, (dump_json(content, indent=1) + "\n").encode())
