"""Latents in the shards of MosaicML's streaming (MDS), for `streaming.StreamingDataset`.

The format is that of mosaicml-streaming 0.13: `MDSWriter.encode_joint_shard` and `JointWriter` write it, `MDSReader`
reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.arrays import has_one_shape, storable
from ldm_vae.latents.shards import NO_LABEL
from ldm_vae.system.store import Store

INDEX = "index.json"
_OWN = {"label": "int", "sample": "int", "source": "str"}
_SIZES = {"int": 8, "float64": 8}
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
    names = list(dataset.moments(0))
    columns = {**_column_encodings(dataset), **_OWN, **{name: _array_encoding(dataset, name) for name in names}}
    encodings = dict(sorted(columns.items()))
    shards, lines = [], dataset.rows()
    for file, rows in zip(file_names(dataset), filter(len, dataset.shard_rows()), strict=False):
        samples = []
        for row, line in zip(rows, lines, strict=False):
            values: dict[str, Any] = {name: line.get("columns", {}).get(name) for name in encodings}
            values |= {"label": line.get("label", NO_LABEL), "sample": line["sample"], "source": line["source"]}
            values |= {name: storable(dataset, row, name) for name in names}
            samples.append(_sample(values, encodings))
        content = _shard(samples, encodings)
        if len(content) > _LARGEST:
            raise ValueError(f"{file} would have {len(content):,} bytes, and MDS has room for {_LARGEST:,}; encode "
                             f"with a smaller --shard_size")  # fmt: skip
        store.write_whole(file, content)
        info = {"basename": file, "bytes": len(content), "hashes": {"sha1": hashlib.sha1(content).hexdigest()}}
        shards.append({**_config(encodings), "raw_data": info, "zip_data": None, "samples": len(samples)})
        yield len(rows)
    store.write_whole(INDEX, json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode())
    yield 0


def _column_encodings(dataset: LatentDataset) -> dict[str, str]:
    """Find encodings that fit the other columns in every row: JSON where there are several types, or none in a row."""
    types: dict[str, set[type]] = {}
    for row, line in enumerate(dataset.rows()):
        for name, value in line.get("columns", {}).items():
            types.setdefault(name, {type(None)} if row > 0 else set()).add(type(value))
        for name in types.keys() - line.get("columns", {}).keys():
            types[name].add(type(None))
    fitting = {frozenset([str]): "str", frozenset([int]): "int", frozenset([float]): "float64",
               frozenset([int, float]): "float64"}  # fmt: skip
    return {name: fitting.get(frozenset(kinds), "json") for name, kinds in types.items() if name not in _OWN}


def _array_encoding(dataset: LatentDataset, name: str) -> str:
    array = storable(dataset, 0, name)
    shape = f":{','.join(map(str, array.shape))}" if has_one_shape(dataset) else ""
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
