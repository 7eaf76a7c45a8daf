"""Files that describe pictures, metadata.csv and its kin: each is read exactly as it is written, nothing guessed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldm_vae.system.telling import counted
from ldm_vae.system.text import first_line, printable

FILE_NAME = "file_name"
"""The column that names a row's picture, relative to the folder of the metadata file."""

LABEL_COLUMNS = ("label", "labels", "cls")
"""Columns whose whole numbers are classes."""

_SEPARATORS = (",", "\t", ";", "|")
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_OTHER_ENCODING = "cp1252"


class MetadataError(ValueError):
    """A metadata file that can't be read: says which, at which line, and why."""


class NoFileNames(MetadataError):
    """A metadata file without the column that names the pictures."""


@dataclass(kw_only=True)
class MetadataTable:
    """One metadata file."""

    path: str
    names: list[str | None]
    """What the column file_name says, by row."""
    columns: dict[str, pa.Array]
    notes: list[str] = field(default_factory=list)


def decode_text(content: bytes) -> tuple[str, str | None]:
    """Return a text file's content, and the encoding where it was assumed.

    It is UTF-8, or UTF-16 where it begins with a byte order mark. Without a mark it is taken for UTF-16 where its
    first character says so, and what is neither for Windows-1252, of which Latin-1 is a part.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    assumed = None
    if encoding == "utf-8" and content[1:2] == b"\0":
        encoding, assumed = "utf-16-le", "UTF-16"
    elif encoding == "utf-8" and content[:1] == b"\0":
        encoding, assumed = "utf-16-be", "UTF-16"
    try:
        return content.decode(encoding), assumed
    except UnicodeDecodeError:
        try:
            return content.decode(_OTHER_ENCODING), "Windows-1252"
        except UnicodeDecodeError:
            return content.decode("latin-1"), "Latin-1"


def read_metadata_file(path: str, *, read: Callable[[str], bytes]) -> MetadataTable:
    """Read a metadata file of this path, whose content `read` returns.

    Raises:
        NoFileNames: It has no column file_name.
        MetadataError: It can't be read.
    """
    try:
        return METADATA_FILES[os.path.basename(path).lower()](read(path), path)
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise MetadataError(f"{printable(path)} can't be read: {first_line(error)}") from error


def _read_csv(content: bytes, path: str) -> MetadataTable:
    """Read a file of separated values: everything is text, but for labels that are whole numbers."""
    text, assumed = decode_text(content)
    separator = _separator(text, path)
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=False)
        header: list[str] = []
        values: list[list[str]] = []
        line = 1
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise MetadataError(f"{printable(path)} can't be read: line {line}: {first_line(error)}") from error
            if row is None:
                break
            if row and not header:
                header = [name.strip() for name in row]
            elif row:
                if len(row) != len(header):
                    raise MetadataError(
                        f"{printable(path)} can't be read: line {line} has {counted(len(row), 'value')} for "
                        f"{counted(len(header), 'column')}; put values that hold {separator!r} into double quotes"
                    )
                values.append(row)
            line = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)
    columns = {name: [row[at] for row in values] for at, name in enumerate(header)}
    _check_columns(header, path)
    names = columns.pop(FILE_NAME)
    table = MetadataTable(path=path, names=list(names), columns={})
    for name, texts in columns.items():
        table.columns[name] = _labels(texts) if name in LABEL_COLUMNS else None
        if table.columns[name] is None:
            table.columns[name] = pa.array(texts, pa.large_string())
    table.notes += _encoding_note(path, assumed)
    return table


def _separator(text: str, path: str) -> str:
    """Return what separates the columns: whatever gives the header a column file_name."""
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    for separator in _SEPARATORS:
        names = next(csv.reader([header], delimiter=separator), [])
        if FILE_NAME in (name.strip() for name in names):
            return separator
    raise NoFileNames(f"{printable(path)}: it has no column {FILE_NAME}; its first line is {printable(header[:80])!r}")


def _labels(texts: list[str]) -> pa.Array | None:
    """Return labels as numbers, null where there is none; None where they aren't all whole numbers."""
    given = [text for text in texts if text]
    if not given or not all(text.isdecimal() and text.isascii() and str(int(text)) == text for text in given):
        return None
    return pa.array([int(text) if text else None for text in texts], pa.int64())


def _read_jsonl(content: bytes, path: str) -> MetadataTable:
    """Read a file of JSON objects, one a line, with the types that they have there."""
    text, assumed = decode_text(content)
    columns: dict[str, list[Any]] = {}
    num_rows = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"{first_line(error)}; it begins with {printable(line.strip()[:40])!r}"
            raise MetadataError(f"{printable(path)} can't be read: line {number}: {what}") from error
        if not isinstance(row, dict):
            raise MetadataError(f"{printable(path)} can't be read: line {number} is no JSON object")
        if not isinstance(row.get(FILE_NAME), str):
            raise MetadataError(f"{printable(path)} can't be read: line {number} has no text {FILE_NAME}")
        for name in row.keys() - columns.keys():
            columns[name] = [None] * num_rows
        for name, values in columns.items():
            values.append(row.get(name))
        num_rows += 1
    _check_columns([*columns] if num_rows else [FILE_NAME], path)
    names = columns.pop(FILE_NAME, [])
    table = MetadataTable(path=path, names=names, columns={name: _typed(values) for name, values in columns.items()})
    table.notes += _encoding_note(path, assumed)
    return table


def _typed(values: list[Any]) -> pa.Array:
    """Return values in the type that they share; values of several types become text, as JSON."""
    types = {type(value) for value in values if value is not None}
    if types <= {str}:
        return pa.array(values, pa.large_string())
    if types == {int} or types == {int, float} or len(types) == 1:
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):
            pass
    return as_text(values)


def as_text(values: list[Any]) -> pa.Array:
    """Return values as text: texts as they are, others as JSON."""
    texts = [value if value is None or isinstance(value, str) else json.dumps(value, default=str) for value in values]
    return pa.array(texts, pa.large_string())


def _read_parquet(content: bytes, path: str) -> MetadataTable:
    file = pq.ParquetFile(pa.BufferReader(content))
    _check_columns(file.schema_arrow.names, path)
    table = file.read().combine_chunks()
    try:
        names = table[FILE_NAME].cast(pa.large_string()).to_pylist()
    except pa.ArrowException as error:
        raise MetadataError(f"{printable(path)} can't be read: its {FILE_NAME} is {table[FILE_NAME].type}") from error
    columns = {}
    for name in table.column_names:
        if name != FILE_NAME:
            column = table[name].combine_chunks()
            columns[name] = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            if pa.types.is_dictionary(columns[name].type):
                columns[name] = pc.cast(columns[name], columns[name].type.value_type)
    return MetadataTable(path=path, names=names, columns=columns)


def _check_columns(names: Sequence[str], path: str) -> None:
    if FILE_NAME not in names:
        listed = ", ".join(map(printable, names)) or "none"
        raise NoFileNames(f"{printable(path)}: it has no column {FILE_NAME}; its columns are {listed}")
    repeated = next((name for name in names if list(names).count(name) > 1), None)
    if repeated is not None:
        raise MetadataError(f"{printable(path)} can't be read: it has several columns {printable(repeated)!r}")


def _encoding_note(path: str, assumed: str | None) -> list[str]:
    return [] if assumed is None else [f"{printable(path)} isn't UTF-8; it is taken for {assumed}"]


METADATA_FILES: dict[str, Callable[[bytes, str], MetadataTable]] = {
    "metadata.csv": _read_csv,
    "metadata.tsv": _read_csv,
    "metadata.jsonl": _read_jsonl,
    "metadata.parquet": _read_parquet,
}
"""Names of metadata files, in any case, and what reads them."""
