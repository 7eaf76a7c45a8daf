"""How a training run ended, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm_vae.system.telling import counted


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
            return self.stop_words(go_on="--train.resume_from_checkpoint latest")
        report = "" if self.report is None else f"\nreport: {self.report}"
        return f"Trained for {counted(self.step, 'step')}; the last checkpoint is {self.checkpoint}{report}"

    def stop_words(self, *, go_on: str) -> str:
        """Return a line about a run that a signal ended; `go_on` are the words that go on with it."""
        saved = f"saved in {self.checkpoint}"
        if self.unsaved:
            saved = f"which are not saved, since {self.unsaved}; {kept_words(self.checkpoint)}"
        return f"Stopped by {self.stopped_by} after {counted(self.step, 'step')}, {saved}; go on with {go_on}"


def kept_words(checkpoint: Path | None) -> str:
    """Return words for which checkpoint there is."""
    return f"{checkpoint.name} is kept" if checkpoint is not None else "no checkpoint was saved before"
