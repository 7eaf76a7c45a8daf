"""What the driver is told to run: jobs, each with the changes that are made to the library for it.

Jobs reach the driver's processes as a file of JSON, in which a change stands as its class and its fields.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.training.changes import Change, SmoothNetworks, change_classes

DRIVER = Path(__file__).parent / "drive.py"


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


def driver_command(jobs: list[Job] | list[ForkedJob], *, file: Path) -> list[str]:
    """Write jobs into a file; return the arguments with which Python runs them."""
    listed = [
        {"kind": type(job).__name__, **dataclasses.asdict(job)}
        | {"changes": [[type(change).__name__, vars(change)] for change in job.changes]}
        for job in jobs
    ]
    file.write_text(json.dumps(listed))
    return [str(DRIVER), str(file)]


def read_jobs(file: Path) -> list[Job]:
    """Return the jobs that `driver_command` wrote."""
    kinds = {"Job": Job, "ForkedJob": ForkedJob}
    changes = {change.__name__: change for change in change_classes()}
    jobs = []
    for fields in json.loads(file.read_text()):
        job_class = kinds[fields.pop("kind")]
        fields["changes"] = tuple(changes[name](**values) for name, values in fields["changes"])
        if fields.get("damage"):
            fields["damage"] = Damage(**fields["damage"])
        jobs.append(job_class(**fields))
    return jobs
