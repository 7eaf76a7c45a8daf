"""What the driver is told to run: jobs, each with the changes that are made to the library for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tests.training.changes import Change, SmoothNetworks


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run in the processes of a launch."""

    config: dict[str, Any]
    """Arguments of `tiny_config`."""
    changes: tuple[Change, ...] = (SmoothNetworks(),)


@dataclass(frozen=True)
class Damage:
    """One file of a run that is damaged before it goes on."""

    file: str
    how: Literal["flip", "cut"]


@dataclass(frozen=True, kw_only=True)
class ForkedJob(Job):
    """A training run in processes of its own, by the command line."""

    name: str
    """What the processes print, and how they end, is filed under this name."""
    num_processes: int = 1
    started: int | None = None
    """How many of the processes are started; all, if none."""
    copy_of: str | None = None
    """The run whose folder is copied first."""
    damage: Damage | None = None
