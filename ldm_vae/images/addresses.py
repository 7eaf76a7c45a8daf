"""Data at addresses such as `s3://bucket/photos`: what lies there, and how its files are read."""

from __future__ import annotations

import fnmatch
import glob
import io
from pathlib import PurePosixPath
from typing import Any

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.cells import Cells
from ldm_vae.images.folders import CAPTION_EXTENSIONS, TABLE_FORMATS, Listing, is_well_known, match_captions
from ldm_vae.images.formats import IMAGE_EXTENSIONS
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.metadata_files import METADATA_FILES
from ldm_vae.system.remote_store import PACKAGES, RemoteStore
from ldm_vae.system.store import StoreError

_BUFFER_BYTES = 1 << 23


def is_store_address(source: str) -> bool:
    """Whether a source is an address of a kind that stores know."""
    return source.partition("://")[0] in PACKAGES and "://" in source and "::" not in source


def list_address(source: str) -> tuple[RemoteStore, Listing, dict[str, int]]:
    """List what lies under an address, or matches it where its last parts hold a pattern.

    Returns:
        The store, what it holds by names relative to it, and the bytes of each picture and file of pictures.

    Raises:
        StoreError: The address can't be listed.
    """
    root, pattern = source.rstrip("/"), ""
    while glob.has_magic(root):
        root, _, last = root.rpartition("/")
        pattern = f"{last}/{pattern}".rstrip("/")
    if not pattern and PurePosixPath(root).suffix.lower() in (*TABLE_FORMATS, *IMAGE_EXTENSIONS):
        root, _, pattern = root.rpartition("/")
    store = RemoteStore(root)
    listing, sizes, captions = Listing(root=store.place()), {}, set()
    for name, size in sorted(store.find().items()):
        ending = PurePosixPath(name).suffix.lower()
        if not _matches(name, pattern) or (size == 0 and name.endswith("/")):
            continue
        if any(part.startswith(".") for part in name.split("/")):
            listing.hidden += ending in (*TABLE_FORMATS, *IMAGE_EXTENSIONS)
        elif PurePosixPath(name).name.lower() in METADATA_FILES:
            listing.metadata.append(name)
        elif ending in (*TABLE_FORMATS, *IMAGE_EXTENSIONS):
            (listing.tables if ending in TABLE_FORMATS else listing.images).append(name)
            sizes[name] = size
        elif ending in CAPTION_EXTENSIONS:
            captions.add(name)
        elif not is_well_known(name):
            listing.left_out[ending] += 1
    match_captions(listing, captions)
    return store, listing, sizes


class StoreCells(Cells):
    """Cells with the names of pictures in a store.

    Args:
        store: Where the pictures are.
        rules: What may be read.
    """

    def __init__(self, store: RemoteStore, *, rules: ReadingRules) -> None:
        super().__init__(root=store.place(), rules=rules)
        self._store = store

    def file(self, cell: Any) -> None:
        """Return None: no picture is a file here."""

    def _caption_content(self, path: str) -> bytes:
        return self._store.read(path)

    def content(self, cell: Any, *, row: int) -> bytes:
        """Return a picture's bytes.

        Raises:
            UnreadableImage: They can't be read, after the store's own attempts.
        """
        name = self.name(cell, row=row)
        try:
            return self._store.read(name)
        except OSError as error:
            raise UnreadableImage(name, str(error)) from None


def open_file(address: str) -> io.BufferedReader:
    """Open an object for reading from its beginning to its end, with a buffer of 8 MiB and the store's attempts.

    Raises:
        OSError: It isn't there, or can't be read.
    """
    root, _, name = address.rpartition("/")
    return io.BufferedReader(_StoreFile(RemoteStore(root), name), _BUFFER_BYTES)


class _StoreFile(io.RawIOBase):
    """An object as a file."""

    def __init__(self, store: RemoteStore, name: str) -> None:
        self._store, self._name, self._at, self._size = store, name, 0, store.size(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        content = self._store.read_range(self._name, self._at, length)
        if len(content) < length:
            raise StoreError(f"{self._store.place(self._name)} ended early")
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _matches(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern part by part; `**` stands for any folders."""
    return not pattern or _parts_match(name.split("/"), pattern.split("/"))


def _parts_match(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_parts_match(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _parts_match(names[1:], patterns[1:])
