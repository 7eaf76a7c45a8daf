"""What the driver is told to run: jobs, each with the changes that are made to the library for it.

Jobs reach the driver's processes as a file of JSON, in which a change stands as its class and its fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.launching import start, torchrun
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


def run_together(folder: Path, launched: Mapping[int, Sequence[Job]], forked: Sequence[ForkedJob]) -> None:
    """Run jobs in launches of so many processes, and forked ones beside them; return when all have ended well.

    Args:
        folder: Where what is run and what it prints is filed.
        launched: The jobs of each launch, by its number of processes.
        forked: Jobs in processes of their own, one after the other.
    """
    commands = {"forked": driver_command([*forked], file=folder / "forked.json")}
    for processes, jobs in launched.items():
        command = driver_command([*jobs], file=folder / f"launch-{processes}.json")
        commands[f"launch-{processes}"] = torchrun(processes, *command)
    started = {name: start(command, output=folder / f"{name}.txt") for name, command in commands.items()}
    for name, process in started.items():
        assert process.wait(timeout=300) == 0, (folder / f"{name}.txt").read_text()[-3000:]
