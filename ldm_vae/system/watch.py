"""What each data worker is at, in memory that it shares with its process.

A decoder may crash or run for ever, where no `except` helps. The process then sees which piece of work it was, starts
its workers anew, and they refuse that piece.
"""

from __future__ import annotations

import itertools
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

_HEADER = struct.Struct("<ddI")  # seconds of a processor at the beginning, seconds allowed, length of the name
_NAME_BYTES = 480
_SLOT_BYTES = _HEADER.size + _NAME_BYTES
_NUM_SLOTS = 32  # of a worker: one a thread
_GRACE_SECONDS = 1.0


class Watch:
    """What the workers of a loader are at, and what they refuse.

    Args:
        num_workers: Number of workers.
    """

    def __init__(self, num_workers: int) -> None:
        self._memory = RawArray("B", num_workers * _NUM_SLOTS * _SLOT_BYTES)
        self.refused: dict[bytes, str] = {}
        """Why pieces of work are refused, by their names' first bytes."""
        self.suspected: set[bytes] = set()
        """Pieces of work at several of which a worker was when it was lost: they are done one after the other."""

    def after_loss(self, names: list[bytes], reason: str) -> Watch:
        """Return a watch for new workers, after one was lost at some pieces of work.

        The piece is refused if it is known: the only one, or the only one that was suspected before. Else all are
        suspected, so that the next loss tells which it is.
        """
        watch = Watch(len(self._memory) // (_NUM_SLOTS * _SLOT_BYTES))
        found = set(names)  # several workers may have been lost at one piece
        known = list(found if len(found) == 1 else found & self.suspected)
        watch.refused, watch.suspected = dict(self.refused), set(self.suspected)
        if len(known) == 1:
            watch.refused[known[0]] = reason
        else:
            watch.suspected |= found
        return watch

    def begin(self, worker: int, thread: int, name: str, *, seconds: float) -> None:
        """Note what a thread of a worker, this process, begins to work at."""
        content = _key(name)
        at = self._place(worker, thread) + _HEADER.size
        memory = memoryview(self._memory).cast("B")
        memory[at : at + len(content)] = content
        _HEADER.pack_into(memory, at - _HEADER.size, time.process_time(), seconds, len(content))

    def end(self, worker: int, thread: int) -> None:
        """Note that a thread of a worker is done."""
        _HEADER.pack_into(memoryview(self._memory).cast("B"), self._place(worker, thread), 0.0, 0.0, 0)

    def at_work(self, worker: int) -> list[tuple[bytes, float, float]]:
        """Return (name, seconds of a processor at its beginning, seconds allowed) of what a worker is at."""
        found = []
        memory = memoryview(self._memory).cast("B")
        for thread in range(_NUM_SLOTS):
            at = self._place(worker, thread)
            started, seconds, length = _HEADER.unpack_from(memory, at)
            if 0 < length <= _NAME_BYTES:
                found.append((bytes(memory[at + _HEADER.size : at + _HEADER.size + length]), started, seconds))
        return found

    def is_stuck(self, worker: int, pid: int) -> bool:
        """Whether a worker has used up the seconds of a processor that all its pieces of work together may take."""
        used, work = _processor_seconds(pid), self.at_work(worker)
        if used is None or not work:
            return False
        allowed = sum(seconds for _, _, seconds in work) + _GRACE_SECONDS
        return used - min(started for _, started, _ in work) > allowed

    def _place(self, worker: int, thread: int) -> int:
        return (worker * _NUM_SLOTS + thread % _NUM_SLOTS) * _SLOT_BYTES


_here: tuple[Watch, int] | None = None
_threads = itertools.count()
_thread = threading.local()
_one_suspect = threading.Lock()


def watch_here(watch: Watch, worker: int) -> None:
    """Let this process, a worker, say what it is at."""
    global _here
    _here = watch, worker


def refusal(name: str) -> str | None:
    """Return why a piece of work isn't to be done by this process, if so."""
    return None if _here is None else _here[0].refused.get(_key(name))


@contextmanager
def at_work(name: str, *, seconds: float) -> Iterator[None]:
    """Say, where this process is a worker, what it is at while the block runs.

    Args:
        name: What messages call the piece of work.
        seconds: Seconds of a processor that it may take.
    """
    if _here is None:
        yield
        return
    watch, worker = _here
    if not hasattr(_thread, "number"):
        _thread.number = next(_threads)
    with _one_suspect if _key(name) in watch.suspected else nullcontext():
        watch.begin(worker, _thread.number, name, seconds=seconds)
        try:
            yield
        finally:
            watch.end(worker, _thread.number)


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")[:_NAME_BYTES]


def _processor_seconds(pid: int) -> float | None:
    """Return the seconds of a processor that a process has used; None where the system doesn't tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
