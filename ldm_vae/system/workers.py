"""Worker processes that prepare batches: started, watched and explained in one place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ldm_vae.system.memory import release_freed_memory
from ldm_vae.system.text import first_line, one_line

T = TypeVar("T")

_PREFETCH_FACTOR = 2
_CHECK_SECONDS = 2


class DataWorkerError(RuntimeError):
    """A worker that died, or gave nothing, or failed in a way that nobody foresaw."""


def load(
    dataset: Dataset,
    *,
    collate: Callable[[list[Any]], T],
    num_workers: int,
    timeout_seconds: float,
    pin_memory: bool,
    batch_sampler: Any = None,
    batch_size: int | None = None,
) -> Iterator[T]:
    """Yield the collated batches of `dataset`, prepared by `num_workers` processes (0: by this one).

    What the dataset raises in a worker is raised here in one line, without the worker's traceback. Nothing is drawn
    from torch's global generator.

    Args:
        dataset: Map-style, or iterable with at most one worker.
        collate: Makes a batch of a list of samples.
        num_workers: Processes, each with one torch thread.
        timeout_seconds: Longest wait for a worker.
        pin_memory: Call the batches' `pin_memory`.
        batch_sampler: Gives the indices of each batch (map-style).
        batch_size: Samples a batch (iterable).

    Raises:
        DataWorkerError: A worker died, or gave nothing for `timeout_seconds`.
    """
    if num_workers > 0:
        dataset = _GuardedStream(dataset) if isinstance(dataset, IterableDataset) else _Guarded(dataset)
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        batch_size=1 if batch_size is None else batch_size,
        collate_fn=_GuardedCollate(collate),
        num_workers=num_workers,
        timeout=min(timeout_seconds, _CHECK_SECONDS) if num_workers > 0 else 0,
        prefetch_factor=_PREFETCH_FACTOR if num_workers > 0 else None,
        worker_init_fn=_init_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    if num_workers > 0:
        release_freed_memory()
    batches = _start(loader)
    while True:
        try:
            batch = _next(batches, timeout_seconds) if num_workers > 0 else next(batches)
        except StopIteration:
            return
        if isinstance(batch, _Raised):
            raise batch.error
        yield batch


def _start(loader: DataLoader) -> Iterator[Any]:
    """Start the workers, without torch's handler for the death of a worker.

    That handler raises wherever the main thread happens to be, be it amid writing a checkpoint; `_next` finds dead
    workers by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _next(batches: Iterator[Any], timeout_seconds: float) -> Any:
    """Return the next batch. The loader's own timeout is short, for only then does it see whether workers live."""
    start = time.monotonic()
    while True:
        try:
            return next(batches)
        except (RuntimeError, OSError, EOFError) as error:  # the last two: it died while it handed something over
            reason = first_line(error)
            if "timed out" not in reason:
                raise DataWorkerError(
                    f"a data worker died ({reason}); is memory short? Set data.num_workers 0 to see the error itself"
                ) from error
            if time.monotonic() - start >= timeout_seconds:
                raise DataWorkerError(
                    f"a data worker gave nothing for {timeout_seconds:g} s; is the storage stuck? "
                    "Set data.num_workers 0 to see where"
                ) from error


class _Raised:
    """What a dataset raised, on its way from the worker; in one line, for not every error survives the way."""

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, (ValueError, RuntimeError)):
            reason = one_line(error)
            message = f"a data worker failed: {type(error).__name__}: {reason}; set data.num_workers 0 to see where"
            error = DataWorkerError(message)
        self.error = error


class _Guarded(Dataset):
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:
            return _Raised(error)


class _GuardedStream(IterableDataset):
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._dataset
        except Exception as error:
            yield _Raised(error)


class _GuardedCollate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        return next((sample for sample in samples if isinstance(sample, _Raised)), None) or self._collate(samples)


def _init_worker(worker: int) -> None:
    """Leave signals to the main process, which alone can terminate its workers.

    Slurm and terminals send SIGTERM or SIGUSR1 to all processes of a run. The run saves and stops then, and needs its
    workers until it has.
    """
    parent = multiprocessing.parent_process()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait") and parent is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: BaseProcess) -> None:
    """End when the parent says so or is gone (which torch misses where a fork server is the worker's real parent)."""
    while parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, _CHECK_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(1)
