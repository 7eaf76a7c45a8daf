"""Folders of whole files, here or at an address: what encode, its index and its readers ask of storage."""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from ldm_vae.system.files import (
    naming_instead,
    sha256_file,
    sync_folder,
    temporary_path,
    whole_or_absent,
    write_whole,
)

T = TypeVar("T")
R = TypeVar("R")

_DIGESTED_AT_ONCE = 1 << 23
_FETCHED_AT_ONCE = 1 << 24
_AHEAD = 4
"""Calls that `each` has made or asked for, for each that is made at once."""


class StoreError(OSError):
    """Storage that can't be reached, read or written; the message is one line."""


class Store(ABC):
    """A folder of files, each of which is whole or absent.

    Names are relative, with `/` between folders. Whoever takes a name from a file's content checks it first
    (`ldm_vae.system.paths.inside`).

    Raises (each method):
        FileNotFoundError: There is no file of that name, where one is read.
        StoreError: The storage can't be reached, read or written.
    """

    calls_at_once = 1
    """How many calls are worth making at the same time."""

    @property
    def folder(self) -> Path | None:
        """The folder of a store that is here; None of one at an address."""
        return None

    @abstractmethod
    def place(self, name: str = "") -> str:
        """Return the path or the address of a file, or of the store, as messages tell it."""

    def called(self, name: str) -> str:
        """Return what a file is called in its folder or at its address, as messages and other programs name it."""
        return name

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's bytes."""

    @abstractmethod
    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes of a file from `start` on; fewer where it ends before."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the bytes of a file."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the names of what lies directly in the store with their bytes; those of folders end with `/`."""

    @abstractmethod
    def writing(self, name: str, *, sync: bool = True) -> AbstractContextManager[Path]:
        """Yield a temporary file here, which becomes the file of that name when the block ends without an error.

        Without `sync` a power failure soon after may take the file.
        """

    @abstractmethod
    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file, or replace it."""

    @abstractmethod
    def create(self, name: str, content: bytes, *, sync: bool = False) -> bool:
        """Write a file unless there is one already; whether it was written.

        It is whole or absent, with `sync` also through a power failure. Of several that create one name at the same
        time one succeeds, where the storage has such a call; where it has none, several may.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def touch(self, name: str, content: bytes) -> None:
        """Change the stamp of a file that holds `content`.

        Raises:
            FileNotFoundError: It is gone.
        """

    @abstractmethod
    def stamp(self, name: str) -> Any:
        """Return what differs after a file was touched or written anew."""

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a path here, in parts."""
        start = 0
        with open(path, "wb") as file:
            while block := self.read_range(name, start, _FETCHED_AT_ONCE):
                file.write(block)
                start += len(block)
        if start != (size := self.size(name)):
            raise StoreError(f"{self.place(name)} can't be read: {start} bytes came of {size}")

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Return the sorted names of the files directly in the store."""
        return sorted(name for name in self.sizes() if not name.endswith("/"))

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file's bytes, in hexadecimal."""
        digest, start = hashlib.sha256(), 0
        while block := self.read_range(name, start, _DIGESTED_AT_ONCE):
            digest.update(block)
            start += len(block)
        return digest.hexdigest()

    def each(self, function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
        """Yield the function's results in order, with as many calls at once as the store is good for."""
        if self.calls_at_once == 1:
            yield from map(function, values)
            return
        threads, waiting = ThreadPoolExecutor(self.calls_at_once), deque[Future[R]]()
        try:
            for value in values:
                waiting.append(threads.submit(function, value))
                if len(waiting) == _AHEAD * self.calls_at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


class LocalStore(Store):
    """A folder of this machine, or one that a shared file system shows here."""

    calls_at_once = 8

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).expanduser()

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._folder

    def place(self, name: str = "") -> str:
        """Return a path."""
        return str(self._folder / name)

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return (self._folder / name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return a part of a file."""
        with open(self._folder / name, "rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return (self._folder / name).stat().st_size

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return (self._folder / name).exists()

    def sizes(self) -> dict[str, int]:
        """Return names and bytes; nothing where the folder isn't there."""
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return {}
        return {f"{entry.name}/" if entry.is_dir() else entry.name: entry.stat(follow_symlinks=False).st_size
                for entry in entries}  # fmt: skip

    def names(self) -> list[str]:
        """Return the sorted names of the files, without a look at each."""
        try:
            return sorted(entry.name for entry in os.scandir(self._folder) if not entry.is_dir())
        except FileNotFoundError:
            return []

    def writing(self, name: str, *, sync: bool = True) -> AbstractContextManager[Path]:
        """Yield a temporary file beside the one that it becomes."""
        self._make_room(name)
        return whole_or_absent(self._folder / name, sync=sync)

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file under another name and rename it."""
        self._make_room(name)
        write_whole(self._folder / name, content)

    def create(self, name: str, content: bytes, *, sync: bool = False) -> bool:
        """Write a file under another name and link it, which only one process can."""
        self._make_room(name)
        path = self._folder / name
        temporary = temporary_path(path)
        with naming_instead(path, temporary):
            try:
                with open(temporary, "xb") as file:
                    file.write(content)
                    if sync:
                        file.flush()
                        os.fsync(file.fileno())
                return _link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
                if sync:
                    sync_folder(path.parent)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._folder / name).unlink(missing_ok=True)

    def touch(self, name: str, content: bytes) -> None:
        """Change the time of a file, to one that isn't rounded to the system's last tick."""
        now = time.time_ns()
        os.utime(self._folder / name, ns=(now, now))

    def stamp(self, name: str) -> Any:
        """Return inode and time."""
        status = (self._folder / name).stat()
        return status.st_ino, status.st_mtime_ns

    def sha256(self, name: str) -> str:
        """Return the digest of a file."""
        return sha256_file(self._folder / name)

    def _make_room(self, name: str) -> None:
        (self._folder / name).parent.mkdir(parents=True, exist_ok=True)


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its name unless another has it; whether it got it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    return True
