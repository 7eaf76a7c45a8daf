"""What `score` found, for people and for files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm_vae.images.guard import SkippedImage
from ldm_vae.scoring.results import ScoredPicture, ScoreResult, is_finite
from ldm_vae.scoring.tables import format_pictures, format_scores
from ldm_vae.system.output_kinds import SCORES
from ldm_vae.system.text import printable

METRICS, TABLE = "metrics.json", "table.md"


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What `score` found and where it is; `str()` is what the command line prints."""

    results: dict[str, ScoreResult]
    """By the scores' names."""
    pictures: list[ScoredPicture]
    """The most unlike normal first."""
    normal: list[ScoredPicture]
    """The normal pictures, in the order of their collection."""
    ranked_by: str
    missing: dict[str, str]
    """Scores that are left out, with the reason."""
    skipped: dict[str, list[SkippedImage]]
    """Images that can't be read, of `data` and of `normal`."""
    quantile: float
    output: Path
    report: Path | None
    """None where none was asked for."""

    @property
    def problem(self) -> str | None:
        """Return, in one line, how many pictures have no finite scores; None where all have."""
        broken = [each.name for each in (*self.normal, *self.pictures) if not is_finite(each)]
        if not broken:
            return None
        total = len(self.normal) + len(self.pictures)
        return (
            f"vae: {len(broken)} of {total} pictures have scores that aren't finite; the first: {printable(broken[0])}"
        )

    def tables(self) -> str:
        """Return the tables in Markdown."""
        scores = format_scores(
            self.results, num_normal=len(self.normal), num_data=len(self.pictures), quantile=self.quantile
        )
        return f"{scores}\n\n{format_pictures(self.pictures, ranked_by=self.ranked_by)}"

    def __str__(self) -> str:
        """Return the table of scores, the picture that is most unlike normal, and where the files are."""
        lines = [format_scores(self.results, num_normal=len(self.normal), num_data=len(self.pictures),
                               quantile=self.quantile)]  # fmt: skip
        lines += [f"without {', '.join(names)}: {reason}" for reason, names in _by_reason(self.missing).items()]
        first = self.pictures[0]
        value = f"{self.ranked_by} {first.scores[self.ranked_by]:.4g}"
        lines.append(f"most unlike normal: {printable(first.name)} ({value})")
        for name, skipped in self.skipped.items():
            if skipped:
                which = f"{printable(skipped[0].name)} ({printable(skipped[0].reason)})"
                lines.append(
                    f"{len(skipped)} of {name} skipped, listed in {self.output / METRICS}; the first: {which}"
                )
        lines += [f"scores: {self.output / SCORES.mark}", f"table: {self.output / TABLE}"]
        return "\n".join(lines if self.report is None else [*lines, f"report: {self.report}"])


def _by_reason(missing: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in missing.items():
        reasons.setdefault(reason, []).append(name)
    return reasons
