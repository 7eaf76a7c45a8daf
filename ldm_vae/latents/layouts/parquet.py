"""Latents in parquet files that `datasets.load_dataset` reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Array3D, Dataset, Features, List, Value

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.arrays import ShardRows, read_rows
from ldm_vae.latents.layouts.columns import file_column, own_values
from ldm_vae.system.store import Store

_LINES_AT_ONCE = 10_000


def file_names(dataset: LatentDataset) -> list[str]:
    """Return a name a shard that isn't empty."""
    count = sum(len(rows) > 0 for rows in dataset.shard_rows())
    return [f"train-{file:05d}-of-{count:05d}.parquet" for file in range(count)]


def write_files(dataset: LatentDataset, store: Store) -> Iterator[int]:
    """Write the files and yield the number of rows of each."""
    columns = _column_features(dataset)
    lines = dataset.rows()
    for file, rows in zip(file_names(dataset), filter(len, dataset.shard_rows()), strict=True):
        read = read_rows(dataset, rows, lines)
        others = [line.get("columns", {}) for line in read.lines]
        with store.writing(file) as temporary:
            write_table(temporary, read, columns=columns, others=others)
        yield len(rows)


def write_table(path: Path, rows: ShardRows, *, columns: Features, others: Sequence[Mapping[str, Any]]) -> None:
    """Write a shard's rows: the tensors as arrays, `label`, `sample`, `source` and the collection's other columns.

    Args:
        path: The file.
        rows: The rows.
        columns: Types of the other columns.
        others: Their values in each row, which may lack some.
    """
    arrays = rows.arrays()
    table: dict[str, Any] = {
        file_column(name, tensors=arrays): [values.get(name) for values in others] for name in columns
    }
    features = Features({file_column(name, tensors=arrays): feature for name, feature in columns.items()})
    own = [own_values(line) for line in rows.lines]
    for name, feature in {"label": Value("int64"), "sample": Value("int64"), "source": Value("string")}.items():
        table[name], features[name] = [values[name] for values in own], feature
    for name, array in arrays.items():
        table[name], features[name] = list(array), _array_feature(array, rows.has_one_shape)
    columnar = Dataset.from_dict(table, features=features).with_format("arrow")[:]
    written = columnar.replace_schema_metadata(features.arrow_schema.metadata)
    with pq.ParquetWriter(path, written.schema) as writer:
        if len(written):  # `datasets` fails at a group of no rows
            writer.write_table(written)


def _array_feature(array: np.ndarray, has_one_shape: bool) -> Any:
    dtype = str(array.dtype)
    return Array3D(shape=array.shape[1:], dtype=dtype) if has_one_shape else List(List(List(Value(dtype))))


def _column_features(dataset: LatentDataset) -> Features:
    """Find types that fit the other columns in every row."""
    schema = pa.schema([])
    lines = (line["columns"] for line in dataset.rows() if "columns" in line)
    while some := list(islice(lines, _LINES_AT_ONCE)):
        schema = pa.unify_schemas([schema, pa.Table.from_pylist(some).schema], promote_options="permissive")
    return Features.from_arrow_schema(schema)
