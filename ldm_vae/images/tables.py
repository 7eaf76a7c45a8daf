"""What a folder's data are where it holds pictures and files of many pictures, or several kinds of these."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_vae.images.folders import TABLE_FORMATS, Listing
from ldm_vae.images.tars import count_samples
from ldm_vae.system.telling import counted
from ldm_vae.system.text import first_line, printable

_RATIO = 10
"""Pictures beside files that hold this many times as many are no data: the preview of a data set, say. And so the
other way round."""


@dataclass(kw_only=True)
class Chosen:
    """What the data of a folder are."""

    tables: list[str]
    """The files of many pictures; none: the picture files are the data."""
    notes: list[str] = field(default_factory=list)
    """What is left out, a line each."""


def choose_data(listing: Listing) -> Chosen:
    """Find out whether a folder's data are its picture files or its parquet, tar or arrow files.

    Raises:
        ValueError: That isn't plain; says how much there is of each kind.
    """
    chosen = Chosen(tables=listing.tables)
    if listing.images and listing.tables:
        chosen.tables = [path for path in listing.tables if _holds_pictures(os.path.join(listing.root, path))]
        left_out = len(listing.tables) - len(chosen.tables)
        if left_out:
            chosen.notes.append(f"left out {counted(left_out, 'file')} of a table without pictures")
    kinds = defaultdict(list)
    for path in chosen.tables:
        kinds[os.path.splitext(path)[1].lower()].append(path)
    if not chosen.tables or (len(kinds) == 1 and not listing.images):
        return chosen
    if len(kinds) == 1:
        number, exact = _count_rows(listing.root, chosen.tables, at_most=_RATIO * len(listing.images))
        if number >= _RATIO * len(listing.images):
            pictures = counted(len(listing.images), "picture file")
            first = printable(listing.images[0])
            chosen.notes.append(f"the data are its {_files(kinds)}; left out {pictures} beside them, such as {first}")
            return chosen
        if exact and _RATIO * number <= len(listing.images):
            chosen.notes.append(f"the data are its picture files; left out {_files(kinds)} with {number:,} pictures")
            return Chosen(tables=[], notes=chosen.notes)
        found = f"{counted(len(listing.images), 'picture file')}, and {_files(kinds)} with {number:,} pictures"
    else:
        found = _files(kinds)
        if listing.images:
            found = f"{counted(len(listing.images), 'picture file')}, {found}"
    example = f"{listing.root}/**/*{next(iter(kinds))}"
    raise ValueError(
        f"holds {found}; name one kind, by a pattern such as '{printable(example)}' or by their own folder"
    )


def _files(kinds: dict[str, list[str]]) -> str:
    return " and ".join(counted(len(paths), f"{ending} file") for ending, paths in sorted(kinds.items()))


def _count_rows(root: str, tables: list[str], *, at_most: int) -> tuple[int, bool]:
    """Return how many rows tables have, and whether that is exact or counting stopped at `at_most`."""
    number = 0
    for path in tables:
        try:
            number += count_rows(os.path.join(root, path), at_most=at_most - number)
        except (ValueError, OSError, pa.ArrowException) as error:
            raise ValueError(f"holds {printable(path)}, which can't be read: {first_line(error)}") from error
        if number >= at_most:
            return number, False
    return number, True


def count_rows(path: str, *, at_most: int) -> int:
    """Return how many rows a file has; of archives and arrow files at most about `at_most` are counted.

    Raises:
        ValueError, OSError, pyarrow.ArrowException: It can't be read.
    """
    kind = TABLE_FORMATS[os.path.splitext(path)[1].lower()]
    if kind == "webdataset":
        return count_samples(path, at_most=at_most)
    if kind == "parquet":
        return int(pq.read_metadata(path).num_rows)
    number = 0
    for batch in _arrow_batches(path):
        number += batch.num_rows
        if number >= at_most:
            break
    return number


def _arrow_batches(path: str) -> Any:
    with pa.memory_map(path) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
        else:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))


def _holds_pictures(path: str) -> bool:
    """Whether a file's schema has a column that may hold pictures; archives, and files that can't be read, may."""
    readers: dict[str, Callable[[str], pa.Schema]] = {"parquet": pq.read_schema, "arrow": _arrow_schema}
    read = readers.get(TABLE_FORMATS[os.path.splitext(path)[1].lower()])
    try:
        schema = None if read is None else read(path)
    except (ValueError, OSError, pa.ArrowException):
        return True
    if schema is None:
        return True
    stated = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    return any(isinstance(feature, dict) and feature.get("_type") == "Image" for feature in stated.values()) or any(
        may_hold_pictures(column.type) for column in schema
    )


def may_hold_pictures(kind: pa.DataType) -> bool:
    """Whether a column's type is that of encoded pictures: bytes, or a struct with bytes."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _arrow_schema(path: str) -> pa.Schema:
    with pa.memory_map(path) as source:
        try:
            return pa.ipc.open_file(source).schema
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).schema
