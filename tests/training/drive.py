"""Drives real training runs for the tests, and breaks them on purpose.

The processes of a launch run all jobs one after the other. Jobs that may be killed run by the command line, each in
processes of its own. `jobs.py` says what a job is, `changes.py` what can be done to the library for it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from unittest import mock

from accelerate.state import PartialState

from ldm_vae import cli
from ldm_vae.config.parsing import dump_config
from ldm_vae.training import loop, processes
from ldm_vae.training.processes import weights_digest
from tests.launching import SECONDS, finish, reserve_port, start_forked, start_launch
from tests.tiny import tiny_config
from tests.training.jobs import ForkedJob, Job
from tests.training.patching import after_step, current_rank, patches
from tests.training.runs import damage

JOB_SECONDS = SECONDS / 3


def run_together(
    folder: Path,
    *,
    launched: Mapping[int, Sequence[Job]] = MappingProxyType({}),
    forked: Sequence[ForkedJob] = (),
    idle: Sequence[ForkedJob] = (),
) -> None:
    """Run jobs in launches of so many processes, and forked ones beside them; return when all have ended well.

    Args:
        folder: Where what is run and what it prints is filed.
        launched: The jobs of each launch, by its number of processes.
        forked: Jobs in processes of their own, one after the other.
        idle: The same, of jobs that mostly wait, beside the others.
    """
    processes = [
        start_forked(run_forked, jobs, output=folder / f"{name}.txt")
        for name, jobs in (("forked", forked), ("idle", idle))
        if jobs
    ]
    for number, jobs in launched.items():
        processes += start_launch(number, run_in_launch, jobs, output=folder / f"launch-of-{number}.txt")
    finish(processes, folder=folder)


def run_in_launch(jobs: Sequence[Job]) -> None:
    """Run the jobs in the launch's processes; each leaves outcome-RANK.json beside its run."""
    kept_group = mock.patch.object(PartialState, "destroy_process_group")  # each run would end the launch's group
    with kept_group, mock.patch.object(processes, "_GRACE_SECONDS", 0.0):
        for job in jobs:
            config = tiny_config(**job.config)
            digests: list[str] = []
            with patches:
                after_step(None, lambda step, digests=digests: digests.append(weights_digest(step.state)))
                for change in job.changes:
                    change.apply()
                try:
                    outcome = str(loop.train(config))
                except (Exception, SystemExit) as error:
                    outcome = f"{type(error).__name__}: {error}"
            told = {"outcome": outcome, "digests": digests}
            Path(f"{config.output_dir}-outcome-{current_rank()}.json").write_text(json.dumps(told))


def run_forked(jobs: Sequence[ForkedJob]) -> None:
    """Run each job in processes of its own; what each prints, and how they end, is filed under the job's name."""
    for job in jobs:
        _run_forked(job)


def _run_forked(job: ForkedJob) -> None:
    config = tiny_config(**job.config)
    run = Path(config.output_dir)
    output = run.parent / job.name
    if job.copy_of is not None:
        shutil.copytree(run.parent / job.copy_of, run)
    if job.damage is not None:
        damage(run / job.damage.file, how=job.damage.how)
    Path(f"{output}.yaml").write_text(dump_config(config))
    port = reserve_port()
    children = []
    for index in range(job.num_processes if job.started is None else job.started):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(f"{output}-{index}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
            os.dup2(1, 2)
            if job.num_processes > 1:
                os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(job.num_processes),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            processes._GRACE_SECONDS = 0.5  # no launcher that kills the others is here
            for change in job.changes:
                change.apply()
            cli.main(["train", "--config", f"{output}.yaml"])
            sys.stdout.flush()
            os._exit(0)  # the end of an interpreter of this size takes longer than the run
        children.append(child)
    ended = {"statuses": wait(children), "left": sorted(path.name for path in run.glob("*"))}
    Path(f"{output}-ended.json").write_text(json.dumps(ended))


def wait(children: list[int]) -> list[int | None]:
    """Return exit statuses, -9 for killed ones, none for those that had to be killed here."""
    statuses: dict[int, int | None] = {}
    until = time.monotonic() + JOB_SECONDS
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    statuses[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > until:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    statuses[child] = None
        time.sleep(0.01)
    return [statuses[child] for child in children]
