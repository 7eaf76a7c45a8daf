"""Worker processes that prepare batches: started, watched and explained in one place."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from ldm_vae.system.guarded import DataWorkerError, Guarded, GuardedCollate, GuardedStream, Raised
from ldm_vae.system.memory import release_freed_memory
from ldm_vae.system.text import first_line, printable
from ldm_vae.system.watch import Watch, watch_here

T = TypeVar("T")

_PREFETCH_FACTOR = 2
_CHECK_SECONDS = 2
_DYING_SECONDS = 10  # a busy machine, or one that writes a core dump, takes some to end a process
_MOST_LOSSES, _MOST_LOSSES_WITHIN = 8, 80  # more workers lost within so many batches are no picture's fault


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
    from torch's global generator. Where a worker dies or is stuck at a piece of work that it named by `watch.at_work`,
    all workers are started anew and refuse that piece; the batches stay the same but for it. (Of an iterable dataset
    that takes a method `resumed(num_samples)`, which leaves out what is delivered.)

    Args:
        dataset: Map-style, or iterable: then each worker iterates over all of it, unless it asks which worker it is.
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
        yield from _Workers(
            dataset,
            collate=collate,
            num_workers=num_workers,
            timeout_seconds=timeout_seconds,
            pin_memory=pin_memory,
            batch_sampler=batch_sampler,
            batch_size=batch_size,
        ).batches()
        return
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        batch_size=1 if batch_size is None else batch_size,
        collate_fn=GuardedCollate(collate),
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, Raised):
            raise batch.error
        yield batch


class _WorkLost(RuntimeError):
    """A worker died or was stuck at known pieces of work."""

    def __init__(self, names: list[bytes], reason: str) -> None:
        super().__init__(reason)
        self.names, self.reason = names, reason


class _Workers:
    """The workers of a loader, started anew without the piece of work that ended one; the arguments are `load`'s."""

    def __init__(
        self,
        dataset: Any,
        *,
        collate: Callable[[list[Any]], Any],
        num_workers: int,
        timeout_seconds: float,
        pin_memory: bool,
        batch_sampler: Any,
        batch_size: int | None,
    ) -> None:
        self._dataset, self._collate, self._pin_memory = dataset, collate, pin_memory
        self._num_workers, self._timeout_seconds, self._batch_size = num_workers, timeout_seconds, batch_size
        self._indices = None if batch_sampler is None else iter(batch_sampler)
        self._pending: deque[Any] = deque()
        """Indices of the batches that are asked for and not delivered."""
        self._watch = Watch(num_workers)

    def batches(self) -> Iterator[Any]:
        """Yield the batches in their order, whichever workers prepared them."""
        delivered, lost_at = 0, deque[int](maxlen=_MOST_LOSSES)
        while True:
            workers = _start(self._loader(delivered))
            try:
                while True:
                    try:
                        batch = _next(workers, self._timeout_seconds, self._watch)
                    except StopIteration:
                        return
                    if isinstance(batch, Raised):
                        raise batch.error
                    if self._pending:
                        self._pending.popleft()
                    delivered += 1
                    yield batch
            except _WorkLost as loss:
                often = len(lost_at) == _MOST_LOSSES and delivered - lost_at[0] < _MOST_LOSSES_WITHIN
                if often or not self._can_resume():
                    name = loss.names[0].decode("utf-8", "replace")
                    raise DataWorkerError(
                        f"{loss.reason}, at {printable(name)}; is memory short? Set num_workers 0 to see the error"
                    ) from None
                lost_at.append(delivered)
                self._watch = self._watch.after_loss(loss.names, loss.reason)
            finally:
                workers._shutdown_workers()  # type: ignore[attr-defined]  # at once, whoever still refers to them

    def _can_resume(self) -> bool:
        return self._indices is not None or hasattr(self._dataset, "resumed")

    def _loader(self, delivered: int) -> DataLoader:
        if self._indices is not None:
            dataset: Any = Guarded(self._dataset)
        else:
            assert self._batch_size is not None
            stream = self._dataset.resumed(delivered * self._batch_size) if delivered else self._dataset
            dataset = GuardedStream(stream)
        release_freed_memory()
        return DataLoader(
            dataset,
            batch_sampler=None if self._indices is None else _Asked(self._pending, self._indices),
            batch_size=1 if self._batch_size is None else self._batch_size,
            collate_fn=GuardedCollate(self._collate),
            num_workers=self._num_workers,
            timeout=min(self._timeout_seconds, _CHECK_SECONDS),
            prefetch_factor=_PREFETCH_FACTOR,
            worker_init_fn=functools.partial(_init_worker, watch=self._watch),
            pin_memory=self._pin_memory,
            generator=torch.Generator(),
        )


class _Asked:
    """Indices of batches: those that were asked for and not delivered, then further ones."""

    def __init__(self, pending: deque[Any], indices: Iterator[Any]) -> None:
        self._pending, self._indices = pending, indices

    def __iter__(self) -> Iterator[Any]:
        yield from list(self._pending)
        for indices in self._indices:
            self._pending.append(indices)
            yield indices


def _start(loader: DataLoader) -> Iterator[Any]:
    """Start the workers, of whose deaths torch's handler isn't to know.

    That handler, which any loader of the process may have set, raises wherever the main thread happens to be, be it
    amid writing a checkpoint; `_next` finds dead workers by itself.
    """
    workers = iter(loader)
    if workers._worker_pids_set:  # type: ignore[attr-defined]
        signal_handling._remove_worker_pids(id(workers))
        workers._worker_pids_set = False  # type: ignore[attr-defined]
    return workers


def _next(batches: Iterator[Any], timeout_seconds: float, watch: Watch) -> Any:
    """Return the next batch. The loader's own timeout is short, for only then does it see whether workers live.

    Raises:
        _WorkLost: A worker died at known pieces of work, or was stuck at them and is killed.
        DataWorkerError: A worker died otherwise, or gave nothing for `timeout_seconds`.
    """
    start = time.monotonic()
    while True:
        try:
            return next(batches)
        except (RuntimeError, OSError, EOFError) as error:  # the last two: it died while it handed something over
            reason = first_line(error)
            workers: list[BaseProcess] = batches._workers  # type: ignore[attr-defined]
            if "timed out" not in reason:
                names = [name for number in _dead(workers) for name, *_ in watch.at_work(number)]
                if names:
                    raise _WorkLost(names, "the process that decoded it died") from error
                raise DataWorkerError(
                    f"a data worker died ({reason}); is memory short? Set num_workers 0 to see the error itself"
                ) from error
            for number, worker in enumerate(workers):
                if worker.pid is not None and watch.is_stuck(number, worker.pid):
                    names = [name for name, *_ in watch.at_work(number)]
                    os.kill(worker.pid, signal.SIGKILL)
                    raise _WorkLost(names, "decoding it did not end within max_decode_seconds") from error
            if time.monotonic() - start >= timeout_seconds:
                raise DataWorkerError(
                    f"a data worker gave nothing for {timeout_seconds:g} s; is the storage stuck? "
                    "Set num_workers 0 to see where"
                ) from error


def _dead(workers: list[BaseProcess]) -> list[int]:
    """Return the numbers of the workers that are dead, or just dying.

    A sentinel tells that a process has closed its files, which is a moment before it can be waited for and counts as
    not alive.
    """
    closed = connection.wait([worker.sentinel for worker in workers], timeout=_DYING_SECONDS)
    for worker in workers:
        if worker.sentinel in closed:
            worker.join(_DYING_SECONDS)
    return [number for number, worker in enumerate(workers) if not worker.is_alive()]


def _init_worker(worker: int, *, watch: Watch) -> None:
    """Leave signals to the main process, which alone can terminate its workers.

    Slurm and terminals send SIGTERM or SIGUSR1 to all processes of a run. The run saves and stops then, and needs its
    workers until it has.
    """
    watch_here(watch, worker)
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
