"""Worker processes that prepare batches: started, watched and explained in one place."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

T = TypeVar("T")

_PREFETCH_FACTOR = 2


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
        RuntimeError: A worker died, or gave nothing for `timeout_seconds`.
    """
    if num_workers > 0:
        dataset = _GuardedStream(dataset) if isinstance(dataset, IterableDataset) else _Guarded(dataset)
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        batch_size=1 if batch_size is None else batch_size,
        collate_fn=_GuardedCollate(collate),
        num_workers=num_workers,
        timeout=timeout_seconds if num_workers > 0 else 0,
        prefetch_factor=_PREFETCH_FACTOR if num_workers > 0 else None,
        worker_init_fn=_init_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if num_workers == 0:
                raise
            raise RuntimeError(_explain(error, timeout_seconds)) from error
        if isinstance(batch, _Raised):
            raise batch.error
        yield batch


class _Raised:
    """What a dataset raised, on its way from the worker; in one line, for not every error survives the way."""

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, (ValueError, RuntimeError)):
            reason = " ".join(str(error).split())
            message = f"a data worker failed: {type(error).__name__}: {reason}; set data.num_workers 0 to see where"
            error = RuntimeError(message)
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
    """Leave signals to the main process: a run that saves and stops on SIGTERM or SIGUSR1, which Slurm and a terminal
    send to all of its processes, needs its workers until then. Only the main process itself can terminate them."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    """Wait for the parent's SIGTERM, and end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _explain(error: RuntimeError, timeout_seconds: float) -> str:
    first_line = str(error).strip().partition("\n")[0].strip().rstrip(".")
    if "timed out" in first_line:
        return (
            f"a data worker gave nothing for {timeout_seconds:g} s; is the storage stuck? "
            "Set data.num_workers 0 to see where"
        )
    return f"a data worker died ({first_line}); is memory short? Set data.num_workers 0 to see the error itself"
