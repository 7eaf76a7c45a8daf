"""What a user keeps about pictures in files beside them, matched to the pictures."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ldm_vae.images.metadata_files import MetadataTable, NoFileNames, as_text, read_metadata_file
from ldm_vae.system.text import printable


@dataclass(kw_only=True)
class Metadata:
    """The rows of all metadata files of a folder, matched to its pictures."""

    columns: dict[str, pa.Array]
    """Values by column, one for each picture; null where the picture has no row."""
    notes: list[str] = field(default_factory=list)
    """What was found odd, or assumed, a line each."""


def read_metadata(
    root: str,
    files: Sequence[str],
    images: Sequence[str],
    *,
    wanted: Sequence[str],
    read: Callable[[str], bytes] | None = None,
) -> Metadata:
    """Read metadata files and find the rows of pictures.

    A row belongs to the picture that its file_name names, seen from the folder of its metadata file. Where several
    files name a picture, the file nearest to it counts. Names are compared exactly, then without regard to the Unicode
    normal form, to the case, and to a missing ending.

    Args:
        root: The folder, or the address.
        files: Paths of the metadata files relative to it.
        images: Paths of all pictures relative to it.
        wanted: The pictures whose values are returned, in this order.
        read: Returns the content of a metadata file by its path; without it they are files of the folder.

    Raises:
        MetadataError: A file can't be read.
    """
    find = _Finder(root, images)
    rows: dict[str, tuple[MetadataTable, int]] = {}
    notes: list[str] = []
    missing: list[str] = []
    num_rows = num_repeated = 0
    tables = []
    for path in sorted(files, key=lambda path: (-path.count("/"), path)):
        try:
            tables.append(read_metadata_file(path, read=read or (lambda name: Path(root, name).read_bytes())))
        except NoFileNames as error:
            notes.append(f"left out {error}")
    for table in tables:
        notes += table.notes
        folder = posixpath.dirname(table.path)
        seen: set[str] = set()
        for row, name in enumerate(table.names):
            num_rows += 1
            image = find(folder, name) if name else None
            if image is None:
                missing.append(name or "")
            elif image in seen:
                num_repeated += 1
            else:
                seen.add(image)
                rows.setdefault(image, (table, row))
    named = ", ".join(table.path for table in tables[:3]) + (" …" if len(tables) > 3 else "")
    notes += [f"{printable(named)}: {line}" for line in _mismatches(missing, num_rows, rows, images, num_repeated)]
    notes += [f"{printable(named)}: {line}" for line in find.notes()]
    columns = {name: _gather(name, tables, rows, wanted) for table in tables for name in table.columns}
    return Metadata(columns=columns, notes=notes)


def _mismatches(
    missing: list[str], num_rows: int, rows: dict[str, Any], images: Sequence[str], num_repeated: int
) -> Iterator[str]:
    if missing:
        yield f"rows that name no picture here: {len(missing):,} of {num_rows:,}, such as {printable(missing[0])!r}"
    without = next((image for image in images if image not in rows), None)
    if without is not None and num_rows > 0:
        number = len(images) - len(rows)
        yield f"pictures without a row: {number:,} of {len(images):,}, such as {printable(without)!r}"
    if num_repeated:
        yield f"rows that name a picture again, whose first row counts: {num_repeated:,}"


def _gather(
    name: str, tables: list[MetadataTable], rows: dict[str, tuple[MetadataTable, int]], wanted: Sequence[str]
) -> pa.Array | pa.ChunkedArray:
    """Return a column's values of the wanted pictures."""
    having = [table for table in tables if name in table.columns]
    starts, total = {}, 0
    for table in having:
        starts[id(table)] = total
        total += len(table.names)
    indices = []
    for image in wanted:
        found = rows.get(image)
        known = found is not None and id(found[0]) in starts
        indices.append(starts[id(found[0])] + found[1] if found is not None and known else None)
    values = [table.columns[name] for table in having]
    if len({value.type for value in values}) > 1:
        values = [as_text(value.to_pylist()) for value in values]
    return pa.chunked_array(values, type=values[0].type).combine_chunks().take(pa.array(indices, pa.int64()))


class _Finder:
    """Finds the picture that a name in a metadata file means."""

    def __init__(self, root: str, images: Sequence[str]) -> None:
        self._root = root if "://" in root else os.path.abspath(root)
        self._exact = dict.fromkeys(images)
        self._images = images
        self._loose: dict[str, str | None] | None = None
        self._stems: dict[str, str | None] | None = None
        self._assumed: Counter[str] = Counter()

    def __call__(self, folder: str, name: str) -> str | None:
        path = self._relative(folder, name)
        if path in self._exact:
            return path
        if self._loose is None:
            self._loose = _unique(self._images, _normal)
            self._stems = _unique(self._images, lambda image: _normal(os.path.splitext(image)[0]))
        assert self._stems is not None
        found = self._loose.get(_normal(path))
        if found is not None:
            self._assumed["but for case or Unicode normal form"] += 1
            return found
        found = self._stems.get(_normal(path))
        if found is not None:
            self._assumed["but for the ending, which they lack"] += 1
        return found

    def _relative(self, folder: str, name: str) -> str:
        if name in self._exact and not folder:
            return name
        if name.startswith(f"{self._root}/"):
            return name.removeprefix(f"{self._root}/")
        if posixpath.isabs(name):
            return os.path.relpath(name, self._root).replace(os.sep, "/")
        path = posixpath.normpath(posixpath.join(folder, name))
        if path in self._exact or "\\" not in name:
            return path
        return posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))

    def notes(self) -> Iterator[str]:
        """Yield what was assumed about names."""
        for how, number in self._assumed.items():
            yield f"names that fit a picture {how}: {number:,}"


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _unique(images: Sequence[str], key: Callable[[str], str]) -> dict[str, str | None]:
    """Return the picture of each key; None where a key has several."""
    found: dict[str, str | None] = {}
    for image in images:
        name = key(image)
        found[name] = None if name in found else image
    return found
