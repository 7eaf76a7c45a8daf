"""Stores that fail, and processes that end at a call of a store."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import fsspec
import pytest

from ldm_vae.system import leases
from ldm_vae.system.output_stores import output_at
from ldm_vae.system.places import open_store
from ldm_vae.system.remote_store import RemoteStore, Retries
from ldm_vae.system.store import Store


class Killed(BaseException):
    """Stands for the end of a process: nothing that catches errors catches it."""


class StoppingStore(Store):
    """A store whose process ends at its n-th call, before or after the call is made; no later call is made.

    Args:
        store: What is called.
        stop: Number of the call, from 0.
        after: Whether the call is made.
    """

    def __init__(self, store: Store, *, stop: int, after: bool) -> None:
        self.store, self.stop, self.after, self.calls = store, stop, after, []
        self._lock = Lock()

    @property
    def folder(self) -> Path | None:
        return self.store.folder

    def place(self, name: str = "") -> str:
        return self.store.place(name)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        last = self._begin(method, str(arguments[0]) if arguments else "")
        result = getattr(self.store, method)(*arguments, **options)
        if last:
            raise Killed
        return result

    def _begin(self, method: str, name: str) -> bool:
        with self._lock:
            number = len(self.calls)
            self.calls.append((method, name))
        if number > self.stop or (number == self.stop and not self.after):
            raise Killed
        return number == self.stop

    @contextlib.contextmanager
    def writing(self, name: str, *, sync: bool = True) -> Iterator[Path]:
        last = self._begin("writing", name)
        with self.store.writing(name) as path:
            yield path
            self._begin("rename", name)
        if last:
            raise Killed

    def read(self, name: str) -> bytes:
        return self._call("read", name)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        return self._call("read_range", name, start, length)

    def size(self, name: str) -> int:
        return self._call("size", name)

    def sizes(self) -> dict[str, int]:
        return self._call("sizes")

    def names(self) -> list[str]:
        return self._call("names")

    def exists(self, name: str) -> bool:
        return self._call("exists", name)

    def sha256(self, name: str) -> str:
        return self._call("sha256", name)

    def write_whole(self, name: str, content: bytes) -> None:
        self._call("write_whole", name, content)

    def create(self, name: str, content: bytes, *, sync: bool = False) -> bool:
        return self._call("create", name, content, sync=sync)

    def remove(self, name: str) -> None:
        self._call("remove", name)

    def touch(self, name: str, content: bytes) -> None:
        self._call("touch", name, content)

    def stamp(self, name: str) -> Any:
        return self._call("stamp", name)


def stopped_at_each_call(
    run: Callable[[StoppingStore], None], *, fresh: Callable[[int], Store], after: bool | None, every: int = 1
) -> Iterator[StoppingStore]:
    """Run something on a new store again and again, and end it at another call of the store each time.

    Args:
        run: What is run. It is over once it comes to its end.
        fresh: Makes the store of a run that ends at the n-th call.
        after: Whether that call is made; None: of every other one.
        every: How many calls further the next run ends.

    Yields:
        The store that a run left, for each that ended early.
    """
    for stop in itertools.count(0, every):
        stopping = StoppingStore(fresh(stop), stop=stop, after=stop % 2 == 0 if after is None else after)
        try:
            run(stopping)
        except Killed:
            yield stopping
        else:
            return


def check_ends_of_writing(
    module: types.ModuleType,
    write: Callable[[str, bool], object],
    *,
    expected: dict[str, bytes],
    fresh: Callable[[int], Store],
    after: bool,
) -> list[dict[str, bytes]]:
    """End a command at each call of its output's store in turn, and have it overwrite what is left.

    Args:
        module: The command's, which opens the output.
        write: Runs it, with the output and whether it overwrites.
        expected: Files of a whole output. Each that a process leaves must be one of these.
        fresh: As in `stopped_at_each_call`.
        after: Likewise.

    Returns:
        The files that each process left.
    """

    def run(store: StoppingStore) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "open_store", lambda place: store)
            patch.setattr(module, "output_at", lambda place, kind: output_at(store, kind=kind))
            write(store.place(), False)

    left = []
    for stopped in stopped_at_each_call(run, fresh=fresh, after=after):
        store = stopped.store
        there = {name: store.read(name) for name in store.names() if name != ".ldm-vae-probe"}
        assert there.items() <= expected.items(), stopped.calls[-1]
        left.append(there)
        write(store.place(), True)
        assert {name: store.read(name) for name in store.names()} == expected, stopped.calls[-1]
    return left


def fresh_places(folder: Path, *, place: str) -> Callable[[int], Store]:
    """Return what makes a store for each number: a folder where `place` is `here`, or an address in memory."""
    return lambda n: open_store(str(folder / f"out-{n}") if place == "here" else f"memory://{uuid.uuid4().hex}/out")


class FaultyStore(RemoteStore):
    """A store whose storage fails: some calls aren't made, of some the answer is lost, and some write half."""

    retries = Retries(first_seconds=0.001)

    def __init__(self, address: str, *, rate: float, seed: int = 0, error: type[Exception] = ConnectionError) -> None:
        self.random, self.rate, self.error, self.faults = random.Random(seed), rate, error, 0
        super().__init__(address)

    def _fs(self) -> Any:
        return _FaultyFiles(super()._fs(), self)


class _FaultyFiles:
    def __init__(self, files: Any, store: FaultyStore) -> None:
        self._files, self._store = files, store

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._files, method)
        if method not in ("pipe_file", "cat_file", "info", "ls", "rm_file", "put_file"):
            return call

        def faulty(*arguments: Any, **options: Any) -> Any:
            fault = self._store.random.random() < self._store.rate
            self._store.faults += fault
            way = self._store.random.randrange(4) if fault and self._store.rate < 1 else 3
            if way == 2 and method == "pipe_file" and "mode" not in options:
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])  # nobody says so
                return None
            if fault and way != 1:
                raise self._store.error("the connection was lost")
            result = call(*arguments, **options)
            if fault:
                raise self._store.error("the answer was lost")
            return result

        return faulty


def of_an_ended_process() -> types.SimpleNamespace:
    """Return what tells leases that they are an ended process's, where this one goes on living."""
    return types.SimpleNamespace(getpid=lambda: 2**22 + 1)  # more than any process's number


class LeaseClock:
    """The clock by which the leases of this process expire; it stands still but for what a test puts it forward."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr(leases, "time", types.SimpleNamespace(monotonic=lambda: self.now))

    def claimed_at(self, claiming: leases.Leases, *moments: float) -> list[str]:
        """Return which of the leases "lost" and "shard" could be claimed until the last of some moments."""
        claimed: dict[str, None] = {}
        for self.now in moments:
            claimed |= dict.fromkeys(name for name in ("lost", "shard") if claiming.claim(name))
        return list(claimed)


def wait_for_touch(store: Store, name: str) -> None:
    """Wait until who holds a lease has touched it."""
    before, until = store.stamp(name), time.monotonic() + 120
    while store.stamp(name) == before:
        assert time.monotonic() < until, f"{name} isn't touched"
        time.sleep(0.01)


def memory_contents(address: str) -> dict[str, bytes]:
    """Return the objects directly under an address, by name."""
    files = fsspec.filesystem(address.partition("://")[0], use_listings_cache=False, skip_instance_cache=True)
    root = address.partition("://")[2]
    return {path.rpartition("/")[2]: files.cat_file(path) for path in files.find(root)}
