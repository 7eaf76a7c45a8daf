"""Drives real training runs for the tests, and breaks them on purpose: `drive.py JOBS.json`.

Under torchrun each process runs all jobs one after the other, in the processes of the launch. Otherwise this process,
once it has imported everything, forks the processes of each job, which run the command line; so that a kill costs no
import. A job is a dict: `config` (arguments of `tiny_config`), `changes` (of CHANGES, as "name" or "name:argument"),
and, when forked, `name`, `num_processes`, how many of them are `started` if not all, and what is done to the run's
folder before (`copy_of`, `damaged`, `how`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from torch import nn

from ldm_vae import cli
from ldm_vae.config.parsing import dump_config
from ldm_vae.images.training import TrainingBatch
from ldm_vae.training import checkpoint, loop, processes
from ldm_vae.training.processes import weights_digest
from ldm_vae.training.state import TrainingState
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config
from tests.training.launching import damage

Job = dict[str, Any]
JOB_SECONDS = 120


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


# Changes: each patches the library for one job, most of them to break it.


def smooth() -> None:
    """Networks without kinks, at which a rounding error flips a sign and becomes a difference that anyone sees."""
    patch(nn, "LeakyReLU", lambda slope: nn.SiLU())
    patch(nn, "ReLU6", nn.SiLU)


def per_rank_lam() -> None:
    """The adaptive weight, and the figures, from each rank's own batch."""
    patch(Accelerator, "reduce", lambda self, tensor, reduction="mean": tensor)
    leave_ranks_uncompared()


def per_rank_noise() -> None:
    """Posterior noise from a generator of the rank's."""
    generator = torch.Generator().manual_seed(rank())

    def noisy(batch: TrainingBatch) -> None:
        batch.noise = torch.randn(batch.noise.shape, generator=generator)

    change_batches(noisy)


def bypassed_reducer() -> None:
    """The autoencoder called around DDP."""

    def bypass(state: TrainingState) -> None:
        state.generator.wrapped = state.generator.module

    change_state(bypass)
    leave_ranks_uncompared()


def differing_at_start(which: str) -> None:
    """A rank whose weights differ in one element from the start."""
    change_state(lambda state: flip(state) if rank() == int(which) else None)


def differing_after_step(which: str) -> None:
    """Rank 1's weights change in one element after a step."""
    after_step(int(which), lambda step: flip(step.state) if rank() == 1 else None)


def nan_images(steps: str) -> None:
    """Rank 1's images aren't numbers, from one step to another."""
    first, last = map(int, steps.split("-"))
    count = iter(range(10**9))

    def break_images(batch: TrainingBatch) -> None:
        if rank() == 1 and first <= next(count) + 1 <= last:
            batch.images[0, 0, 0, 0] = float("nan")

    change_batches(break_images)


def signal_in_step(argument: str) -> None:
    """`SIGTERM,1,3`: rank 1 gets SIGTERM in step 3."""
    name, which, step = argument.split(",")
    if rank() == int(which):
        before_step(int(step), lambda _: os.kill(os.getpid(), getattr(signal, name)))


def worker_killed_in_step(argument: str) -> None:
    """`1,3`: a data worker of rank 1 is killed in step 3."""
    which, step = map(int, argument.split(","))

    def kill(_: TrainingStep) -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    if rank() == which:
        before_step(step, kill)


def silent_in_step(argument: str) -> None:
    """`1,3`: rank 1 does nothing any more in step 3."""
    which, step = map(int, argument.split(","))
    if rank() == which:
        before_step(step, lambda _: time.sleep(5))


def killed_in_save(argument: str) -> None:
    """`2,4`: the process that writes the second checkpoint is killed in its fourth file."""
    which, file = map(int, argument.split(","))
    written = iter(range(1, 10**9))
    saves = count_saves()
    write = checkpoint.write_tensors

    def write_half(path: Path, tensors: Any) -> None:
        write(path, tensors)
        if saves[0] == which and next(written) == file:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    patch(checkpoint, "write_tensors", write_half)


def killed_before_rename(which: str) -> None:
    """All files of the so-manieth checkpoint are written, but it has not got its name."""
    saves = count_saves()

    def sync(folder: Path) -> None:
        if saves[0] == int(which):
            os.kill(os.getpid(), signal.SIGKILL)

    patch(checkpoint, "sync_folder", sync)


def killed_in_removal(which: str) -> None:
    """The process is killed while an old checkpoint is removed, after so many saves."""
    saves = count_saves()
    rmtree = shutil.rmtree

    def remove(path: Path, **kwargs: Any) -> None:
        if saves[0] >= int(which) and path.name.endswith(".removed") and path.is_dir():
            next(path.iterdir()).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        rmtree(path, **kwargs)

    patch(shutil, "rmtree", remove)


def full_disk_in_save(which: str) -> None:
    """No file may grow beyond 20 kB from the so-manieth checkpoint on."""
    save = checkpoint.save_checkpoint
    saves = iter(range(1, 10**9))

    def fill(*args: Any) -> Path:
        if next(saves) == int(which):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return save(*args)

    patch(loop, "save_checkpoint", fill)


CHANGES: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        smooth, per_rank_lam, per_rank_noise, bypassed_reducer, differing_at_start, differing_after_step, nan_images,
        signal_in_step, worker_killed_in_step, silent_in_step, killed_in_save, killed_before_rename,
        killed_in_removal, full_disk_in_save,
    )
}  # fmt: skip

patches = contextlib.ExitStack()


def patch(owner: Any, name: str, replacement: Any) -> None:
    patches.enter_context(mock.patch.object(owner, name, replacement))


def leave_ranks_uncompared() -> None:
    patch(loop, "check_ranks_agree", lambda *args, **kwargs: None)


def change_state(change: Callable[[TrainingState], None]) -> None:
    build = loop.build_state

    @functools.wraps(build)
    def built(*args: Any, **kwargs: Any) -> TrainingState:
        state = build(*args, **kwargs)
        change(state)
        return state

    patch(loop, "build_state", built)


def change_batches(change: Callable[[TrainingBatch], None]) -> None:
    open_batches = loop.open_batches

    def changed(*args: Any, **kwargs: Any) -> Iterator[TrainingBatch]:
        for batch in open_batches(*args, **kwargs):
            change(batch)
            yield batch

    patch(loop, "open_batches", changed)


def before_step(number: int, work: Callable[[TrainingStep], None]) -> None:
    call = TrainingStep.__call__

    def called(self: TrainingStep, batches: Iterator[TrainingBatch]) -> None:
        if self.state.step + 1 == number:
            work(self)
        call(self, batches)

    patch(TrainingStep, "__call__", called)


def after_step(number: int | None, work: Callable[[TrainingStep], None]) -> None:
    call = TrainingStep.__call__

    def called(self: TrainingStep, batches: Iterator[TrainingBatch]) -> None:
        call(self, batches)
        if number in (None, self.state.step):
            work(self)

    patch(TrainingStep, "__call__", called)


def count_saves() -> list[int]:
    saves = [0]
    save = checkpoint.save_checkpoint

    def counted(*args: Any) -> Path:
        saves[0] += 1
        return save(*args)

    patch(loop, "save_checkpoint", counted)
    return saves


def flip(state: TrainingState) -> None:
    """Change the lowest bit of one weight."""
    bias = state.autoencoder.decoder.conv_out.bias
    bias.data[0] = torch.nextafter(bias.data[0], torch.tensor(1e9))


# Running


def apply_changes(job: Job) -> None:
    for change in job.get("changes", []):
        name, _, argument = change.partition(":")
        CHANGES[name](*[argument] if argument else [])


def run_in_launch(jobs: list[Job]) -> None:
    """Run the jobs in the launch's processes; each leaves outcome-RANK.json beside its run."""
    kept_group = mock.patch.object(PartialState, "destroy_process_group")  # each run would end the launch's group
    with kept_group, mock.patch.object(processes, "_GRACE_SECONDS", 0.0):
        for job in jobs:
            config = tiny_config(**job["config"])
            digests: list[str] = []
            with patches:
                after_step(None, lambda step, digests=digests: digests.append(weights_digest(step.state)))
                apply_changes(job)
                try:
                    outcome = str(loop.train(config))
                except (Exception, SystemExit) as error:
                    outcome = f"{type(error).__name__}: {error}"
            told = {"outcome": outcome, "digests": digests}
            Path(f"{config.output_dir}-outcome-{rank()}.json").write_text(json.dumps(told))


def run_forked(job: Job) -> None:
    """Run a job in processes of its own. What each prints, and how they end, is filed under its name."""
    config = tiny_config(**job["config"])
    run, num_processes = Path(config.output_dir), job["num_processes"]
    output = run.parent / job["name"]
    if "copy_of" in job:
        shutil.copytree(run.parent / job["copy_of"], run)
    if "damaged" in job:
        damage(run / job["damaged"], how=job["how"])
    Path(f"{output}.yaml").write_text(dump_config(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for index in range(job.get("started", num_processes)):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(f"{output}-{index}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
            os.dup2(1, 2)
            if num_processes > 1:
                os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(num_processes),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            processes._GRACE_SECONDS = 0.5  # no launcher that kills the others is here
            apply_changes(job)
            cli.main(["train", "--config", f"{output}.yaml"])
            sys.stdout.flush()
            os._exit(0)  # the end of an interpreter of this size takes longer than the run
        children.append(child)
    ended = {"statuses": wait(children), "left": sorted(path.name for path in run.glob("*"))}
    Path(f"{output}-ended.json").write_text(json.dumps(ended))


def wait(children: list[int]) -> list[int | None]:
    """Exit statuses, -9 for killed ones, none for those that had to be killed here."""
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


if __name__ == "__main__":
    listed = json.loads(Path(sys.argv[1]).read_text())
    if "RANK" in os.environ:
        run_in_launch(listed)
    else:
        gc.collect()
        gc.freeze()  # so that the children needn't copy what they don't change
        for each in listed:
            run_forked(each)
