"""Changes to the library for one job of the driver: most of them break it, as a fault or a machine would."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from ldm_vae.images.training import TrainingBatch
from ldm_vae.training import checkpoint, loop
from ldm_vae.training.state import TrainingState
from ldm_vae.training.step import TrainingStep
from tests.training.patching import (
    after_step,
    before_step,
    change_batches,
    change_state,
    count_saves,
    current_rank,
    flip_a_bit,
    leave_ranks_uncompared,
    patch,
)


class Change(ABC):
    """One change, made by patching the library in the process that calls `apply`."""

    @abstractmethod
    def apply(self) -> None:
        """Make the change, until `patches` is closed."""


class _Softplus(nn.Softplus):
    """Made as ReLU is."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()


@dataclass(frozen=True)
class SmoothNetworks(Change):
    """Networks without kinks, at which a rounding error flips a sign and becomes a difference that anyone sees.

    Linear attention divides by sums of what its ReLU gives, and jumps where they are 0; those of softplus never are.
    """

    def apply(self) -> None:
        patch(nn, "LeakyReLU", lambda slope: nn.SiLU())
        patch(nn, "ReLU6", nn.SiLU)
        patch(nn, "ReLU", _Softplus)


@dataclass(frozen=True)
class LamOfEachRank(Change):
    """The adaptive weight, and the figures, come from each rank's own batch."""

    def apply(self) -> None:
        patch(Accelerator, "reduce", lambda self, tensor, reduction="mean": tensor)
        leave_ranks_uncompared()


@dataclass(frozen=True)
class NoiseOfEachRank(Change):
    """Posterior noise comes from a generator of the rank's."""

    def apply(self) -> None:
        generator = torch.Generator().manual_seed(current_rank())

        def noisy(batch: TrainingBatch) -> None:
            batch.noise = torch.randn(batch.noise.shape, generator=generator)

        change_batches(noisy)


@dataclass(frozen=True)
class BypassedReducer(Change):
    """The autoencoder is called around DDP."""

    def apply(self) -> None:
        def bypass(state: TrainingState) -> None:
            state.generator.wrapped = state.generator.module

        change_state(bypass)
        leave_ranks_uncompared()


@dataclass(frozen=True)
class DifferentAtStart(Change):
    """The weights of one rank differ in one element from the start."""

    rank: int

    def apply(self) -> None:
        change_state(lambda state: flip_a_bit(state) if current_rank() == self.rank else None)


@dataclass(frozen=True)
class DifferentAfterStep(Change):
    """Rank 1's weights change in one element after a step."""

    step: int

    def apply(self) -> None:
        after_step(self.step, lambda step: flip_a_bit(step.state) if current_rank() == 1 else None)


@dataclass(frozen=True)
class NanImages(Change):
    """Rank 1's images aren't numbers, from one step to another, both included."""

    first: int
    last: int

    def apply(self) -> None:
        count = iter(range(10**9))

        def break_images(batch: TrainingBatch) -> None:
            if current_rank() == 1 and self.first <= next(count) + 1 <= self.last:
                batch.images[0, 0, 0, 0] = float("nan")

        change_batches(break_images)


@dataclass(frozen=True)
class SignalInStep(Change):
    """One rank gets a signal when it begins a step."""

    signal: str
    rank: int
    step: int

    def apply(self) -> None:
        if current_rank() == self.rank:
            before_step(self.step, lambda _: os.kill(os.getpid(), getattr(signal, self.signal)))


@dataclass(frozen=True)
class WorkerKilledInStep(Change):
    """The data workers of one rank are killed when it begins a step."""

    rank: int
    step: int

    def apply(self) -> None:
        def kill(_: TrainingStep) -> None:
            for worker in multiprocessing.active_children():
                worker.kill()
                assert worker.pid is not None
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # it has died, and nobody has noticed

        if current_rank() == self.rank:
            before_step(self.step, kill)


@dataclass(frozen=True)
class SilentInStep(Change):
    """One rank does nothing when it begins a step, until the others have given up on it."""

    rank: int
    step: int

    def apply(self) -> None:
        def wait(_: TrainingStep) -> None:
            until = time.monotonic() + 200
            while time.monotonic() < until and any(process.pid != os.getpid() for process in siblings()):
                time.sleep(0.1)

        def siblings() -> list[psutil.Process]:
            """Return the processes of the run, which the driver waits for."""
            return psutil.Process(os.getppid()).children()

        if current_rank() == self.rank:
            before_step(self.step, wait)


@dataclass(frozen=True)
class KilledInSave(Change):
    """The process that writes a checkpoint is killed in one of its files, which it has half written."""

    save: int
    """The first checkpoint that the process writes is 1."""
    file: int

    def apply(self) -> None:
        written = iter(range(1, 10**9))
        saves = count_saves()
        write = checkpoint.write_tensors

        def write_half(path: Path, tensors: Any) -> None:
            write(path, tensors)
            if saves[0] == self.save and next(written) == self.file:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        patch(checkpoint, "write_tensors", write_half)


@dataclass(frozen=True)
class KilledBeforeRename(Change):
    """The process is killed when all files of a checkpoint are written, but it has not got its name."""

    save: int

    def apply(self) -> None:
        saves = count_saves()

        def sync(folder: Path) -> None:
            if saves[0] == self.save:
                os.kill(os.getpid(), signal.SIGKILL)

        patch(checkpoint, "sync_folder", sync)


@dataclass(frozen=True)
class KilledInRemoval(Change):
    """The process is killed while an old checkpoint is removed, after so many saves."""

    saves: int

    def apply(self) -> None:
        saves = count_saves()
        rmtree = shutil.rmtree

        def remove(path: Path, **kwargs: Any) -> None:
            if saves[0] >= self.saves and path.name.endswith(".removed") and path.is_dir():
                next(path.iterdir()).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            rmtree(path, **kwargs)

        patch(shutil, "rmtree", remove)


@dataclass(frozen=True)
class FullDiskInSave(Change):
    """No file may grow beyond 20 kB from a checkpoint on."""

    save: int

    def apply(self) -> None:
        save = checkpoint.save_checkpoint
        saves = iter(range(1, 10**9))

        def fill(*args: Any) -> Path:
            if next(saves) == self.save:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return save(*args)

        patch(loop, "save_checkpoint", fill)
