"""What a dataset raises, on its way from a data worker to the process that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from ldm_vae.system.text import one_line


class DataWorkerError(RuntimeError):
    """A worker that died, or gave nothing, or failed in a way that nobody foresaw."""


class Raised:
    """What a dataset raised, on its way from the worker; in one line, for not every error survives the way."""

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, (ValueError, RuntimeError)):
            reason = one_line(error)
            message = f"a data worker failed: {type(error).__name__}: {reason}; set num_workers 0 to see where"
            error = DataWorkerError(message)
        self.error = error


class Guarded(Dataset):
    """A map-style dataset that hands over what it raises."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:
            return Raised(error)


class GuardedStream(IterableDataset):
    """An iterable dataset that hands over what it raises, and ends."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._dataset
        except Exception as error:
            yield Raised(error)


class GuardedCollate:
    """Makes a batch of samples, unless one of them was raised."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        """Return the collated samples, or the first that was raised."""
        return next((sample for sample in samples if isinstance(sample, Raised)), None) or self._collate(samples)
