"""What a run leaves in its folder, and under which names."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ldm_vae.reporting.report import is_report
from ldm_vae.system.output_kinds import REPORT

_CHECKPOINT = "checkpoint-"
_CHECKPOINT_NAME = re.compile(_CHECKPOINT + r"(\d{6,})")


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after `step` updates: `checkpoint-000500`."""
    return f"{_CHECKPOINT}{step:06d}"


def is_checkpoint_name(name: str) -> bool:
    """Return whether `name` is that of a finished checkpoint."""
    return _CHECKPOINT_NAME.fullmatch(name) is not None


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    match = _CHECKPOINT_NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training run.

    config.yaml                    all settings, resolved
    metrics.jsonl                  a line of figures every log_steps, and one for each validation
    skipped.jsonl                  images that could not be read, with the reason
    data_names.txt.gz              names of the images that the run trains on
    samples/step-000500.png        originals above reconstructions
    logs/                          the tracker's files
    report.html                    the curves and samples, as a page
    checkpoint-000500/             what the run goes on from, and what is exported
    checkpoint-000500.damaged/     a checkpoint that was not whole when the run was resumed, kept
    .checkpoint-000500.unfinished  what a killed process was writing
    .checkpoint-000500.removed     what a killed process was removing
    """

    path: Path

    @property
    def config(self) -> Path:
        """The settings, as YAML."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The figures, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        """The images that could not be read, a JSON object a line."""
        return self.path / "skipped.jsonl"

    @property
    def data_names(self) -> Path:
        """The names of the training data, a line each, compressed."""
        return self.path / "data_names.txt.gz"

    @property
    def samples(self) -> Path:
        """The folder of sample pictures."""
        return self.path / "samples"

    @property
    def logs(self) -> Path:
        """The tracker's folder."""
        return self.path / "logs"

    @property
    def report(self) -> Path:
        """The page of curves and samples."""
        return self.path / REPORT

    def sample(self, step: int) -> Path:
        """Return the path of the sample picture that is drawn after `step` updates."""
        return self.samples / f"step-{step:06d}.png"

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` updates."""
        return self.path / checkpoint_name(step)

    def unfinished_checkpoint(self, step: int) -> Path:
        """Return the path under which the checkpoint after `step` updates is written, before it gets its name."""
        return self.path / f".{checkpoint_name(step)}.unfinished"

    def checkpoints(self, *, after: int = -1) -> list[Path]:
        """Return the checkpoints of steps beyond `after`, oldest first, whole or damaged but none unfinished."""
        found = [path for path in self.path.glob(f"{_CHECKPOINT}*") if is_checkpoint_name(path.name)]
        return sorted((path for path in found if checkpoint_step(path) > after), key=checkpoint_step)

    def holds_run(self) -> bool:
        """Return whether a run has begun here."""
        return self.config.exists() or self.metrics.exists() or bool(self.checkpoints())

    def remove_interrupted(self) -> None:
        """Remove what killed processes were writing or removing."""
        for path in self.path.glob(f".{_CHECKPOINT}*"):
            shutil.rmtree(path)

    def remove_run(self) -> None:
        """Remove what a run writes, and nothing else."""
        damaged = self.path.glob(f"{_CHECKPOINT}*.damaged")
        for folder in [*self.checkpoints(), *damaged, self.samples, self.logs]:
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.metrics, self.skipped, self.data_names, self.config):
            file.unlink(missing_ok=True)
        if is_report(self.report):
            self.report.unlink()


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint under another name, so that an interrupted removal leaves no half of it under its own."""
    removed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    shutil.rmtree(checkpoint.rename(removed))


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint, for whoever wants to know what happened to it."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
