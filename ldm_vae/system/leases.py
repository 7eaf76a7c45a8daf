"""Leases, by which processes share work through nothing but the folder, or the store, that they write."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ldm_vae.system.files import process_host, process_lives
from ldm_vae.system.places import open_store
from ldm_vae.system.store import Store

_LEASE = ".lease"


class Leases:
    """Claims on pieces of work, as files in a shared folder or a store.

    A lease is created exclusively, so two processes can't take the same one; it is touched while its owner works, and
    expires when it has not been touched for `seconds`. Expiry is judged by how long *this* process has seen a lease
    unchanged, so the clocks of different nodes need not agree. The lease of a process that died on this host expires
    at once. In the rare case that two processes end up with one piece of work (a process that was stopped for longer
    than `seconds` goes on, two take over an expired lease at the same moment, or the store can't create exclusively),
    both do it: the work must be such that this does no harm.

    Use it as a context manager: leaving it gives back what is still held.
    """

    def __init__(self, folder: Path | Store, *, seconds: float) -> None:
        self.store = open_store(folder)
        self.seconds = seconds
        self._held: set[str] = set()
        self._finished: dict[str, None] = {}  # of those held
        self._finishing = threading.Lock()
        self._seen: dict[str, tuple[Any, float]] = {}
        self._content = f"{process_host()} {os.getpid()}".encode()
        self._stop = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="leases", daemon=True)

    def __enter__(self) -> Leases:
        self._renewal.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop.set()
        self._renewal.join()
        for file in list(self._held):
            if kind is None:
                self._give_back(file)
            else:
                with suppress(OSError):  # what went wrong before is what is told
                    self._give_back(file)

    def claim(self, name: str) -> bool:
        """Take the lease of a piece of work; false if another process holds it."""
        file = _file(name)
        with self._finishing:
            self._finished.pop(file, None)  # where it is held, it is to be done again
            if file in self._held:
                return True
        if self._expired(file):
            self.store.remove(file)
        if not self.store.create(file, self._content):
            return False
        self._held.add(file)
        self._give_back_finished()
        return True

    def is_held(self, name: str) -> bool:
        """Whether any process, this one too, holds the lease of a piece of work, or died with it."""
        return self.store.exists(_file(name))

    def release(self, name: str) -> None:
        """Give a lease back."""
        self._give_back(_file(name))

    def finish(self, name: str) -> None:
        """Give back the lease of work that is done, but not the last one before another is claimed.

        So a process that works is seen to between two pieces of work, too.
        """
        with self._finishing:
            self._finished[_file(name)] = None
        self._give_back_finished()

    def clear(self, *, but_for: str) -> None:
        """Remove all leases but one, whoever holds them: for when all work is done."""
        for file in self.store.names():
            if file.endswith(_LEASE) and file != _file(but_for):
                self._give_back(file)

    def taken_elsewhere(self) -> bool:
        """Whether another process, which may be alive, holds any lease in the folder. Removes those that expired."""
        taken = False
        for file in self.store.names():
            if file.endswith(_LEASE) and file not in self._held:
                if self._expired(file):
                    self.store.remove(file)
                else:
                    taken = True
        return taken

    def _give_back_finished(self) -> None:
        """Give back what is finished: all where other work is held, else all but the last."""
        with self._finishing:
            kept = 0 if self._held - self._finished.keys() else 1
            over = list(self._finished)[: len(self._finished) - kept]
            for file in over:
                del self._finished[file]
        for file in over:
            self._give_back(file)

    def _give_back(self, file: str) -> None:
        self._held.discard(file)
        self.store.remove(file)

    def _expired(self, file: str) -> bool:
        try:
            stamp, content = self.store.stamp(file), self.store.read(file)
        except FileNotFoundError:
            return False
        host, _, pid = content.partition(b"\n")[0].decode(errors="replace").rpartition(" ")
        if host == process_host() and pid.isdigit() and not process_lives(int(pid)):
            return True
        seen, since = self._seen.get(file, (None, 0.0))
        if seen != stamp:
            self._seen[file] = (stamp, time.monotonic())
            return False
        return time.monotonic() - since > self.seconds

    def _renew(self) -> None:
        while not self._stop.wait(self.seconds / 6):
            for file in list(self._held):
                with suppress(OSError):  # taken over, or a file system that is away: then the lease may expire
                    self.store.touch(file, self._content)
                if self.store.folder is None and file not in self._held:  # given back while it was written again
                    with suppress(OSError):
                        self.store.remove(file)


def _file(name: str) -> str:
    return f".{name}{_LEASE}"
