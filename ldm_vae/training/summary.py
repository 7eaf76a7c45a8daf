"""How a training run ended, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How a run ended."""

    step: int
    """Number of updates that were made."""
    checkpoint: Path | None
    """The last checkpoint; None where none could be saved."""
    unsaved: str | None
    """Why the last step was not saved; None where it was."""
    stopped_by: str | None
    """Name of the signal that ended the run early; None where none did."""
    report: Path | None = None
    """The page of the run's curves; None where none was asked for."""

    def __str__(self) -> str:
        if self.stopped_by:
            saved = f"saved in {self.checkpoint}"
            if self.unsaved:
                saved = f"which are not saved, since {self.unsaved}; {kept_words(self.checkpoint)}"
            return (
                f"Stopped by {self.stopped_by} after {self.step} steps, {saved}; go on with "
                f"--train.resume_from_checkpoint latest"
            )
        report = "" if self.report is None else f"\nreport: {self.report}"
        return f"Trained for {self.step} steps; the last checkpoint is {self.checkpoint}{report}"


def kept_words(checkpoint: Path | None) -> str:
    """Return words for which checkpoint there is."""
    return f"{checkpoint.name} is kept" if checkpoint is not None else "no checkpoint was saved before"
