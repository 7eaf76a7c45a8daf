"""Latents in parquet files that `datasets.load_dataset` reads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Array3D, Dataset, Features, List, Value

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.arrays import has_one_shape, storable
from ldm_vae.latents.shards import NO_LABEL
from ldm_vae.system.store import Store

_LINES_AT_ONCE = 10_000


def file_names(dataset: LatentDataset) -> list[str]:
    """Return a name a shard that isn't empty."""
    count = sum(len(rows) > 0 for rows in dataset.shard_rows())
    return [f"train-{file:05d}-of-{count:05d}.parquet" for file in range(count)]


def write_files(dataset: LatentDataset, store: Store) -> Iterator[int]:
    """Write the files and yield the number of rows of each.

    Columns are the stored tensors as arrays, `label`, `sample`, `source` and the collection's other columns.
    """
    one_shape = has_one_shape(dataset)
    columns = _column_features(dataset)
    lines = dataset.rows()
    for file, rows in zip(file_names(dataset), filter(len, dataset.shard_rows()), strict=True):
        table: dict[str, list[Any]] = {}
        for row, line in zip(rows, lines, strict=False):
            values: dict[str, Any] = {name: line.get("columns", {}).get(name) for name in columns}
            values |= {name: storable(dataset, row, name) for name in dataset.moments(row)}
            values |= {"label": line.get("label", NO_LABEL), "sample": line["sample"], "source": line["source"]}
            for name, value in values.items():
                table.setdefault(name, []).append(value)
        own = {"label": Value("int64"), "sample": Value("int64"), "source": Value("string")}
        features = Features({**columns, **own})
        for name, tensor in dataset.moments(rows[0]).items():
            dtype = "float32" if tensor.dtype == torch.bfloat16 else str(tensor.dtype).removeprefix("torch.")
            nested = List(List(List(Value(dtype))))
            features[name] = Array3D(shape=tuple(tensor.shape), dtype=dtype) if one_shape else nested
        with store.writing(file) as temporary:
            columnar = Dataset.from_dict(table, features=features).with_format("arrow")[:]
            pq.write_table(columnar.replace_schema_metadata(features.arrow_schema.metadata), temporary)
        yield len(rows)


def _column_features(dataset: LatentDataset) -> Features:
    """Find types that fit the other columns in every row."""
    schema = pa.schema([])
    lines = (line["columns"] for line in dataset.rows() if "columns" in line)
    while some := list(islice(lines, _LINES_AT_ONCE)):
        schema = pa.unify_schemas([schema, pa.Table.from_pylist(some).schema], promote_options="permissive")
    return Features.from_arrow_schema(schema)
