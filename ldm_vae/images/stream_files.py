"""A stream's files, read one after the other: again where one breaks off, and then left out or an error, by rule."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from datasets import IterableDataset

from ldm_vae.config.names import WhenDead
from ldm_vae.config.rules import RunError
from ldm_vae.system.text import first_line, printable

T = TypeVar("T")

_AHEAD = 8
"""Images of a file that are read ahead, undecoded."""


class StreamError(RunError):
    """A stream that broke off."""


@dataclass(frozen=True, kw_only=True)
class FileRules:
    """What becomes of a file that can't be read to its end."""

    dead_files: WhenDead = "stop"
    """Whether it ends the run, or the rest of it is left out until the next pass."""
    timeout_seconds: float = 60.0
    """Longest time in which a file may give nothing."""
    attempts: int = 3
    """Attempts without progress after which it counts as dead."""
    first_seconds: float = 0.2
    """Wait before the second attempt; it doubles with each further one."""
    advice: str = "<data.dead_files> skip would leave the rest of such files out"
    """What may be done where the rule is to stop."""


@dataclass(frozen=True, kw_only=True)
class DeadFile:
    """A file of which the rest was left out."""

    name: str
    number: int
    """Number of the file in the stream."""
    reason: str


class StreamFiles:
    """The rows of a stream that fall to one of several processes, pass after pass.

    Where the number of processes divides that of the files, each process reads the same files in every pass. Where it
    doesn't, but there are as many files, each reads every P-th file, and in the next pass the next ones: after P
    passes each has read all, so that all rows come equally often. Where there are fewer files than processes, each
    reads all and keeps every P-th row.

    Args:
        dataset: The stream.
        names: What its files are called, in order.
        source: What the user named, for messages.
        rules: What becomes of files that can't be read.
        process_index: This process, r.
        num_processes: P.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        *,
        names: list[str],
        source: str,
        rules: FileRules,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self._dataset, self._source, self._rules = dataset, source, rules
        self._index, self._processes, self._num_files = process_index, num_processes, dataset.num_shards
        known = len(names) == self._num_files
        self._names = names if known else [f"part {file}" for file in range(self._num_files)]
        self.dead: list[DeadFile] = []
        """Files that were left out since somebody last took them from here."""

    @property
    def num_kinds(self) -> int:
        """Passes after which the same rows come again."""
        rotates = self._num_files >= self._processes and self._num_files % self._processes != 0
        return self._processes if rotates else 1

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield this process's rows of pass `number`.

        Raises:
            StreamError: A file can't be read, and the rule is to stop.
        """
        if self._num_files >= self._processes:
            first = (self._index + number % self.num_kinds) % self._processes
            for file in range(first, self._num_files, self._processes):
                yield from self.file(file)
            return
        for at, row in enumerate(self.all_rows()):
            if at % self._processes == self._index:
                yield row

    def all_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of all files."""
        for file in range(self._num_files):
            yield from self.file(file)

    def file(self, file: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of file `file`; where it breaks off it is read again up to there.

        Raises:
            StreamError: It can't be read, and the rule is to stop.
        """
        done = attempts = 0
        while True:
            try:
                with closing(within(lambda: self._read(file), self._rules.timeout_seconds)) as rows:
                    for at, row in enumerate(rows):
                        if at == done:
                            done, attempts = done + 1, 0
                            yield row
                return
            except Exception as error:
                attempts += 1
                if attempts == self._rules.attempts:
                    self._give_up(file, done, first_line(error), error)
                    return
                time.sleep(self._rules.first_seconds * 2 ** (attempts - 1))

    def _read(self, file: int) -> Iterable[dict[str, Any]]:
        # In batches of one, because plain iteration would divide the file among a loader's workers.
        for rows in self._dataset.shard(num_shards=self._num_files, index=file).iter(batch_size=1):
            yield {name: values[0] for name, values in rows.items()}

    def _give_up(self, file: int, done: int, reason: str, error: Exception) -> None:
        name = printable(self._names[file])
        if self._rules.dead_files == "stop":
            raise StreamError(
                f"reading {self._source} broke off: {name}, {self._rules.attempts} times behind row {done}: {reason}; "
                f"{self._rules.advice}"
            ) from error
        reason = f"the rest of the file is left out, behind row {done}: {reason}"
        self.dead.append(DeadFile(name=name, number=file, reason=reason))


class _Silence(OSError):
    """A source that gives nothing."""


def within(make: Callable[[], Iterable[T]], seconds: float) -> Generator[T]:
    """Yield what `make()` gives, which a thread reads a little ahead.

    Raises:
        OSError: It gave nothing for so many seconds; the thread is left to itself.
        Exception: What the reading raised.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(kind: str, item: Any = None) -> None:
        while not stopped.is_set():
            try:
                items.put((kind, item), timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in make():
                put("item", item)
                if stopped.is_set():
                    return
            put("end")
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=read, name="stream file", daemon=True)
    thread.start()
    try:
        while True:
            try:
                kind, item = items.get(timeout=seconds)
            except queue.Empty:
                raise _Silence(f"it gave nothing for {seconds:g} s") from None
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        stopped.set()
