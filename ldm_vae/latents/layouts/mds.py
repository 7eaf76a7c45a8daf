"""Latents in the shards of MosaicML's streaming (MDS), for `streaming.StreamingDataset`.

The format is that of mosaicml-streaming 0.13: `MDSWriter.encode_joint_shard` and `JointWriter` write it, `MDSReader`
reads it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.arrays import ShardRows, read_rows
from ldm_vae.latents.layouts.columns import OWN, ColumnKind, Columns, common_kind, file_column, own_values
from ldm_vae.system.store import Store

INDEX = "index.json"
_SIZES = {"int": 8, "float64": 8}
_ENCODINGS: dict[ColumnKind, str] = {"text": "str", "int": "int", "float": "float64", "bool": "json", "json": "json"}
_LARGEST = 2**32 - 1


def file_names(dataset: LatentDataset) -> list[str]:
    """Return a name a shard that isn't empty, and that of the index, which is written last."""
    count = sum(len(rows) > 0 for rows in dataset.shard_rows())
    return [*(f"shard.{file:05d}.mds" for file in range(count)), INDEX]


def write_files(dataset: LatentDataset, store: Store) -> Iterator[int]:
    """Write the files and yield the number of rows of each.

    Columns are the stored tensors as arrays, `label`, `sample`, `source` and the collection's other columns.

    Raises:
        ValueError: A shard is too large for the format, whose offsets have 32 bits.
    """
    columns, lines, index = _columns(dataset), dataset.rows(), IndexLines()
    for file, rows in zip(file_names(dataset), filter(len, dataset.shard_rows()), strict=False):
        content, info = shard_content(read_rows(dataset, rows, lines), columns=columns, name=file)
        store.write_whole(file, content)
        index.add(file, size=len(content), samples=len(rows), info=info)
        yield len(rows)
    index.write(store, INDEX)
    yield 0


def shard_content(rows: ShardRows, *, columns: Columns, name: str) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a shard, and what the index has to know of it beside its size.

    A column in which a row of the shard has no value is JSON there, which gives readers the same values.

    Args:
        rows: The shard's rows.
        columns: The collection's other columns.
        name: What the shard is called, for messages.

    Raises:
        ValueError: It is too large for the format.
    """
    arrays = rows.arrays()
    table = [columns.values(line) for line in rows.lines]
    kinds: dict[str, ColumnKind] = dict(columns.in_files())
    encodings = {
        file_column(column, tensors=arrays): _column_encoding(kind, [values[column] for values in table])
        for column, kind in kinds.items()
    }
    encodings |= {column: _ENCODINGS[kind] for column, kind in OWN.items()}
    encodings |= {column: _array_encoding(array, rows.has_one_shape) for column, array in arrays.items()}
    encodings = dict(sorted(encodings.items()))
    samples = []
    for row, (line, values) in enumerate(zip(rows.lines, table, strict=True)):
        cells = {file_column(column, tensors=arrays): value for column, value in values.items()}
        cells |= {**own_values(line), **{column: array[row] for column, array in arrays.items()}}
        samples.append(_sample(cells, encodings))
    content = _shard(samples, encodings)
    if len(content) > _LARGEST:
        raise ValueError(f"{name} would have {len(content):,} bytes, and MDS has room for {_LARGEST:,}; encode "
                         f"with a smaller --shard_size")  # fmt: skip
    return content, {"encodings": encodings, "sha1": hashlib.sha1(content).hexdigest()}


class IndexLines:
    """Takes what the index says of shard after shard, none of it in memory, and writes the index."""

    def __init__(self) -> None:
        self._lines = tempfile.TemporaryFile()  # noqa: SIM115
        self._lines.write(b'{"shards": [')
        self._separator = b""

    def add(self, name: str, *, size: int, samples: int, info: Mapping[str, Any]) -> None:
        """Take the next shard, by its file's name and bytes, its rows, and what `shard_content` told."""
        raw = {"basename": name, "bytes": size, "hashes": {"sha1": info["sha1"]}}
        entry = {**_config(info["encodings"]), "raw_data": raw, "zip_data": None, "samples": samples}
        self._lines.write(self._separator + json.dumps(entry, sort_keys=True).encode())
        self._separator = b", "

    def write(self, store: Store, name: str) -> None:
        """Write the index."""
        self._lines.write(b'], "version": 2}')
        self._lines.seek(0)
        with store.writing(name) as temporary, open(temporary, "wb") as file:
            shutil.copyfileobj(self._lines, file)


def _columns(dataset: LatentDataset) -> Columns:
    """Find the kinds of the other columns, over all rows."""
    values: dict[str, dict[type, Any]] = {}
    for line in dataset.rows():
        for name, value in line.get("columns", {}).items():
            seen = values.setdefault(name, {})
            if type(value) is not int or abs(value) >= abs(seen.get(int, 0)):
                seen[type(value)] = value
    return Columns(kinds={name: common_kind(list(seen.values())) for name, seen in values.items()})


def _column_encoding(kind: ColumnKind, values: list[Any]) -> str:
    return "json" if any(value is None for value in values) else _ENCODINGS[kind]


def _array_encoding(array: np.ndarray, has_one_shape: bool) -> str:
    shape = f":{','.join(map(str, array.shape[1:]))}" if has_one_shape else ""
    return f"ndarray:{array.dtype}{shape}"


def _size(encoding: str) -> int | None:
    """Return the bytes of every value of an encoding; None where they differ."""
    kind, *rest = encoding.split(":")
    if kind == "ndarray" and len(rest) == 2:
        return int(np.prod([int(side) for side in rest[1].split(",")])) * np.dtype(rest[0]).itemsize
    return _SIZES.get(encoding)


def _sample(values: dict[str, Any], encodings: dict[str, str]) -> bytes:
    data = [_encode(values[name], encoding) for name, encoding in encodings.items()]
    lengths = [len(value) for value, encoding in zip(data, encodings.values(), strict=True) if _size(encoding) is None]
    return np.array(lengths, np.uint32).tobytes() + b"".join(data)


def _encode(value: Any, encoding: str) -> bytes:
    if encoding.startswith("ndarray"):
        if _size(encoding) is not None:
            return value.tobytes()
        sides = np.array(value.shape, np.uint32)  # 2: sides of 32 bits
        return bytes([value.ndim << 2 | 2]) + sides.tobytes() + value.tobytes()
    if encoding == "str":
        return value.encode(errors="backslashreplace")
    if encoding == "int":
        return np.int64(value).tobytes()
    if encoding == "float64":
        return np.float64(value).tobytes()
    return json.dumps(value).encode()


def _config(encodings: dict[str, str]) -> dict[str, Any]:
    return {
        "version": 2, "format": "mds", "compression": None, "hashes": ["sha1"], "size_limit": None,
        "column_names": list(encodings), "column_encodings": list(encodings.values()),
        "column_sizes": [_size(encoding) for encoding in encodings.values()],
    }  # fmt: skip


def _shard(samples: list[bytes], encodings: dict[str, str]) -> bytes:
    config = json.dumps(_config(encodings), sort_keys=True).encode()
    start = 4 + 4 * (len(samples) + 1) + len(config)
    offsets = start + np.cumsum([0, *map(len, samples)], dtype=np.int64)
    return np.uint32(len(samples)).tobytes() + offsets.astype(np.uint32).tobytes() + config + b"".join(samples)
