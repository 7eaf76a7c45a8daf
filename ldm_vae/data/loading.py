"""Worker processes that prepare batches: started, watched and explained in one place."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, IterableDataset

T = TypeVar("T")

_GRACE_SECONDS = 60
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

    What a dataset raises in a worker is raised here as it is, without the worker's traceback.

    Raises:
        RuntimeError: A worker died, or gave nothing for `timeout_seconds`.
    """
    guarded = _GuardedStream(dataset) if isinstance(dataset, IterableDataset) else _Guarded(dataset)
    loader = DataLoader(
        guarded,
        batch_sampler=batch_sampler,
        batch_size=batch_size if batch_sampler is None else 1,
        collate_fn=_GuardedCollate(collate),
        num_workers=num_workers,
        timeout=timeout_seconds if num_workers > 0 else 0,
        prefetch_factor=_PREFETCH_FACTOR if num_workers > 0 else None,
        worker_init_fn=_init_worker,
        pin_memory=pin_memory,
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            raise RuntimeError(_explain(error, timeout_seconds)) from error
        if isinstance(batch, _Raised):
            raise batch.error
        yield batch


class _Raised:
    """What a dataset raised, on its way from the worker."""

    def __init__(self, error: Exception) -> None:
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
    """Leave signals to the main process: a run that saves on SIGTERM or SIGUSR1 still needs its workers meanwhile.

    A worker that is told to terminate ends with the main process, but after a minute in any case.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE_SECONDS) and None)


def _explain(error: RuntimeError, timeout_seconds: float) -> str:
    first_line = str(error).strip().partition("\n")[0]
    if "timed out" in first_line:
        return (
            f"a data worker gave nothing for {timeout_seconds:g} s; is the storage stuck? "
            "Set data.num_workers 0 to see where"
        )
    return f"a data worker died ({first_line}); is memory short? Set data.num_workers 0 to see the error itself"
