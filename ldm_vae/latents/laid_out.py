"""Outputs of `encode` whose shards are the files of another trainer's layout.

Each shard is a file of the layout under the layout's own name. What `encode` keeps beside it (plan, records, lists,
index, leases) are hidden files `.ldm-vae-encode-…`, which the layouts' readers pass over. To the rest of the program
such an output is a store of the usual names: `latents-00000.safetensors` is whatever file holds the rows of shard 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ldm_vae.latents.sealed import read_sealed
from ldm_vae.latents.shards import CODEBOOK
from ldm_vae.system.output_kinds import HIDDEN, LAID_OUT_LATENTS
from ldm_vae.system.places import open_store
from ldm_vae.system.store import Store

T = TypeVar("T")
R = TypeVar("R")

_LIST = "layout-"
"""What the layout's own lists are called in the store, before their names in the folder."""
_SHARD = re.compile(r"latents-(\d+(?:-\d+)?)\.safetensors")


@dataclass(frozen=True, kw_only=True)
class LayoutFiles:
    """What the files of a layout are called."""

    prefix: str
    ending: str
    lists: tuple[str, ...] = ()
    """Files that tell of all shards, written when all are whole."""


LAYOUT_FILES = {
    "lightningdit": LayoutFiles(
        prefix="latents_rank00_shard", ending=".safetensors", lists=("latents_stats.pt",)
    ),
    "mds": LayoutFiles(prefix="shard.", ending=".mds", lists=("index.json",)),
    "parquet": LayoutFiles(prefix="train-", ending=".parquet"),
    "webdataset": LayoutFiles(prefix="latents-", ending=".tar"),
}  # fmt: skip


class LaidOutStore(Store):
    """The store of an output in another layout, by the names that outputs have in this program's own.

    Args:
        inner: Where the files are, by their names there.
        layout: Name of the layout.
    """

    def __init__(self, inner: Store, layout: str) -> None:
        self.inner, self.layout, self._files = inner, layout, LAYOUT_FILES[layout]
        self.calls_at_once = inner.calls_at_once
        self.lists = tuple(f"{_LIST}{name}" for name in self._files.lists)
        """Names of the layout's own lists."""
        ending = re.escape(self._files.ending)
        self._shard = re.compile(rf"{re.escape(self._files.prefix)}(\d+(?:-\d+)?){ending}")

    def called(self, name: str) -> str:
        """Return what a file is called where it lies."""
        if match := _SHARD.fullmatch(name):
            return f"{self._files.prefix}{match[1]}{self._files.ending}"
        if name in self.lists:
            return name.removeprefix(_LIST)
        return name if name == CODEBOOK else f"{HIDDEN}{name}"

    def strays(self) -> list[str]:
        """Return the names of files that the layout's readers would take for shards, and that no shard has."""
        found = (name for name in self.inner.names() if name.endswith(self._files.ending))
        return [name for name in found if self._name_of(name) is None]

    def _name_of(self, called: str) -> str | None:
        """Return the name of a file by what it is called; None of a file that isn't the output's."""
        if match := self._shard.fullmatch(called):
            return f"latents-{match[1]}.safetensors"
        if called in self._files.lists:
            return f"{_LIST}{called}"
        if called == CODEBOOK:
            return called
        return called.removeprefix(HIDDEN) if called.startswith(HIDDEN) else None

    @property
    def folder(self) -> Path | None:
        """The folder, where it is here."""
        return self.inner.folder

    def place(self, name: str = "") -> str:
        """Return a path or an address."""
        return self.inner.place(self.called(name) if name else "")

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return self.inner.read(self.called(name))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return a part of a file."""
        return self.inner.read_range(self.called(name), start, length)

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return self.inner.size(self.called(name))

    def sizes(self) -> dict[str, int]:
        """Return names and bytes of the output's files."""
        found = ((self._name_of(called), size) for called, size in self.inner.sizes().items())
        return {name: size for name, size in found if name is not None}

    def names(self) -> list[str]:
        """Return the sorted names of the output's files."""
        return sorted(name for called in self.inner.names() if (name := self._name_of(called)) is not None)

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.inner.exists(self.called(name))

    def sha256(self, name: str) -> str:
        """Return the digest of a file."""
        return self.inner.sha256(self.called(name))

    def writing(self, name: str, *, sync: bool = True) -> AbstractContextManager[Path]:
        """Yield a temporary file, which becomes the file of that name."""
        return self.inner.writing(self.called(name), sync=sync)

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file, or replace it."""
        self.inner.write_whole(self.called(name), content)

    def create(self, name: str, content: bytes, *, sync: bool = False) -> bool:
        """Write a file unless there is one already."""
        return self.inner.create(self.called(name), content, sync=sync)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.inner.remove(self.called(name))

    def touch(self, name: str, content: bytes) -> None:
        """Change the stamp of a file."""
        self.inner.touch(self.called(name), content)

    def stamp(self, name: str) -> Any:
        """Return what differs after a file was touched."""
        return self.inner.stamp(self.called(name))

    def each(self, function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
        """Yield the function's results in order."""
        return self.inner.each(function, values)


def layout_lists(store: Store) -> tuple[str, ...]:
    """Return the names, in an output's store, of the lists that its layout has for itself."""
    return store.lists if isinstance(store, LaidOutStore) else ()


def open_output_store(place: str | Path | Store) -> Store:
    """Return the store of an output that is there, in whichever layout.

    Raises:
        ValueError: It is in a layout that this version doesn't know, or its plan is damaged.
    """
    store = open_store(place)
    try:
        plan = read_sealed(store, LAID_OUT_LATENTS.mark)
    except FileNotFoundError:
        return store
    layout = None if plan is None else (plan.get("layout") or {}).get("name")
    if layout not in LAYOUT_FILES:
        what = "is damaged: start the same encode again" if plan is None else f"tells an unknown layout {layout!r}"
        raise ValueError(f"{store.place(LAID_OUT_LATENTS.mark)} {what}")
    return LaidOutStore(store, layout)
