"""Which micro-batches fit into a device's memory; each is tried in a process of its own."""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ldm_vae.config.commands.batch_size import FindBatchSizeOptions
from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.training.capacity import GIB, PeakMemory
from ldm_vae.training.processes import join_processes
from ldm_vae.training.state import build_state
from ldm_vae.training.step import TrainingStep

TIMED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A micro-batch that was tried."""

    micro_batch_size: int
    peak_bytes: int | None
    """The most memory that the updates took; None where the micro-batch didn't fit."""
    images_per_second: float | None
    """Rate of the updates; None where the micro-batch didn't fit."""


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """The micro-batches that fit."""

    largest: int
    fastest: int
    """The one with the most images a second."""

    def __str__(self) -> str:
        return f"the largest that fits: {self.largest}; the most images a second: {self.fastest}"


def find_batch_size(options: FindBatchSizeOptions) -> BatchSizes:
    """Try micro-batches on this device, and print a line for each.

    Raises:
        ValueError: Not even one image fits.
    """
    if len(options.row) > 1:
        print(f"of the run's {len(options.row)} stages the first is tried")
    limit = options.limit_gib or 0.9 * available_memory() / GIB
    print(f"limit {limit:.2f} GiB\nmicro-batch  peak GiB  images/s")
    fitting: list[Trial] = []
    for trial in try_micro_batches(options.row[0], limit_bytes=int(limit * GIB), largest=options.largest):
        if trial.peak_bytes is None:
            print(f"{trial.micro_batch_size:11d}  too large", flush=True)
            continue
        line = f"{trial.micro_batch_size:11d} {trial.peak_bytes / GIB:9.2f} {trial.images_per_second:9.2f}"
        print(line, flush=True)
        fitting.append(trial)
    require(bool(fitting), f"<limit_gib> is {limit:.2f}, and not even one image fits")
    return BatchSizes(
        largest=max(trial.micro_batch_size for trial in fitting),
        fastest=max(fitting, key=lambda trial: trial.images_per_second or 0.0).micro_batch_size,
    )


def try_micro_batches(config: Config, *, limit_bytes: int, largest: int = 1024) -> Iterator[Trial]:
    """Yield trials of the micro-batches that `next_micro_batch` names, until the largest that fits is known.

    A trial makes real updates, GAN included, on synthetic images, on one device; each runs in a process of its own, so
    that nothing is left of the one before. On a CPU a process that takes too much memory is killed, and others with
    it; so a micro-batch isn't tried there if the straight line through the two before it puts it over the limit.

    Args:
        config: The run. Its `micro_batch_size` is what is looked for, and no data is read.
        limit_bytes: The most memory that may be used.
        largest: The largest micro-batch to try.

    Raises:
        RuntimeError: A trial fails for another reason than memory.
    """
    fitting: list[Trial] = []
    size, too_large = next_micro_batch(0, None, largest=largest), None
    while size is not None:
        trial = _try(config, size, limit_bytes=limit_bytes, before=fitting)
        yield trial
        if trial.peak_bytes is not None:
            fitting.append(trial)
        else:
            too_large = size
        fits = fitting[-1].micro_batch_size if fitting else 0
        size = next_micro_batch(fits, too_large, largest=largest)


def next_micro_batch(fits: int, too_large: int | None, *, largest: int) -> int | None:
    """Return the micro-batch to try next, or None where the answer is known to an eighth.

    It doubles until one doesn't fit, and then lies halfway between what fits and what doesn't.

    Args:
        fits: The largest micro-batch that fits so far, 0 if none does yet.
        too_large: The smallest one that doesn't fit, if any.
        largest: The largest micro-batch to try.
    """
    if too_large is None:
        return min(max(1, 2 * fits), largest) if fits < largest else None
    between = (fits + too_large) // 2
    return between if between > fits and too_large - fits > fits // 8 else None


def _try(config: Config, size: int, *, limit_bytes: int, before: list[Trial]) -> Trial:
    too_much = Trial(micro_batch_size=size, peak_bytes=None, images_per_second=None)
    if not torch.cuda.is_available() and _predicted(size, before) > limit_bytes:
        return too_much
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_trial, args=(theirs, config, size), daemon=True)
    child.start()
    theirs.close()
    try:
        trial = ours.recv()
    except EOFError:
        child.join()
        if child.exitcode == -9:  # killed for its memory
            return too_much
        raise RuntimeError(f"the trial of a micro-batch of {size} failed; its error is above") from None
    return trial if trial.peak_bytes is not None and trial.peak_bytes <= limit_bytes else too_much


def _predicted(size: int, before: list[Trial]) -> float:
    if len(before) < 2:
        return 0.0
    (size_a, peak_a), (size_b, peak_b) = ((trial.micro_batch_size, trial.peak_bytes or 0) for trial in before[-2:])
    return peak_b + (size - size_b) * (peak_b - peak_a) / (size_b - size_a)


def _trial(connection: Connection, config: Config, size: int) -> None:
    """Send the trial of a micro-batch; this runs in a process of its own."""
    train = dataclasses.replace(config.train, batch_size=size, micro_batch_size=size)
    config = dataclasses.replace(
        config, train=train, report_to="none", loss=dataclasses.replace(config.loss, disc_start=0)
    )
    accelerator = join_processes(config).accelerator
    device = accelerator.device
    memory = PeakMemory(device)
    try:
        state = build_state(config, accelerator=accelerator)
        step = TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)
        if train.compiles(device.type):
            state.compile_networks()
        batch = step.grey_batch(size, resolution=config.data.sizes[0])
        if device.type == "cuda":
            batch = batch.pin_memory()
        step(iter([batch]))
        _wait(device)
        if device.type == "cuda":
            memory = PeakMemory(device)  # measured anew, without what cuDNN took to choose its kernels
        start = time.perf_counter()
        for _ in range(TIMED_STEPS):
            step(iter([batch]))
        _wait(device)
    except torch.cuda.OutOfMemoryError:
        connection.send(Trial(micro_batch_size=size, peak_bytes=None, images_per_second=None))
        return
    rate = TIMED_STEPS * size / (time.perf_counter() - start)
    connection.send(Trial(micro_batch_size=size, peak_bytes=memory.peak, images_per_second=rate))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def available_memory() -> int:
    """Return the bytes that are free for a run: on the CUDA device, or without one in the machine (Linux)."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024
