"""Shards that `encode` writes in other trainers' layouts as it goes, without a folder of latents first."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Features, Value
from torch import Tensor

from ldm_vae.latents.codebook import look_up
from ldm_vae.latents.index import FurtherLists
from ldm_vae.latents.laid_out import LaidOutStore
from ldm_vae.latents.layouts import lightningdit, mds, parquet, webdataset
from ldm_vae.latents.layouts.arrays import ShardRows
from ldm_vae.latents.layouts.columns import Columns, read_columns
from ldm_vae.latents.sealed import dump_json
from ldm_vae.latents.shards import NO_LABEL, Plan, Row, ShardRecord
from ldm_vae.latents.summaries import ShardSummary
from ldm_vae.system.float64 import float64_tensor
from ldm_vae.system.store import Store

_VALUES = {"text": Value("string"), "int": Value("int64"), "float": Value("float64"), "bool": Value("bool"),
           "json": Value("string")}  # fmt: skip


class ShardLayout(ABC):
    """How a layout holds a shard, and what it lists of all of them.

    Args:
        columns: The collection's other columns.
        codes: The codes [n, d] that are meant where numbers of codes are stored.
    """

    name: ClassVar[str]

    def __init__(self, columns: Columns, *, codes: Tensor | None = None) -> None:
        self._columns, self._codes = columns, codes

    @abstractmethod
    def write(self, path: Path, rows: ShardRows) -> dict[str, Any] | None:
        """Write a shard; return what the lists have to know of it beside its record, if anything."""

    def lists(self) -> FurtherLists | None:
        """Return what makes the layout's own lists of all shards, where it has some."""
        return None


class _Mds(ShardLayout):
    name = "mds"

    def write(self, path: Path, rows: ShardRows) -> dict[str, Any]:
        content, info = mds.shard_content(rows, columns=self._columns, name="a shard")
        path.write_bytes(content)
        return info

    def lists(self) -> FurtherLists:
        return _MdsIndex()


class _MdsIndex:
    def __init__(self) -> None:
        self._lines = mds.IndexLines()

    def add(self, record: ShardRecord | ShardSummary, store: Store) -> None:
        if record.count:  # readers know no empty shards
            name = store.called(f"{record.stem}.safetensors")
            self._lines.add(name, size=record.size, samples=record.count, info=record.layout or {})

    def write(self, store: Store, *, stats: Mapping[str, Any]) -> list[str]:
        (name,) = _list_names(store)
        self._lines.write(store, name)
        return [name]


class _Webdataset(ShardLayout):
    name = "webdataset"

    def write(self, path: Path, rows: ShardRows) -> None:
        webdataset.write_tar(path, rows)


class _Parquet(ShardLayout):
    name = "parquet"

    def write(self, path: Path, rows: ShardRows) -> None:
        kinds = self._columns.in_files()
        others = [
            {name: _as_text(value) if kinds[name] == "json" else value for name, value in values.items()}
            for values in map(self._columns.values, rows.lines)
        ]
        columns = Features({name: _VALUES[kind] for name, kind in kinds.items()})
        parquet.write_table(path, rows, columns=columns, others=others)


class _LightningDiT(ShardLayout):
    name = "lightningdit"

    def write(self, path: Path, rows: ShardRows) -> None:
        lightningdit.write_tensor_file(
            path,
            latents=self._latents(rows, ""),
            flipped=self._latents(rows, "_flip"),
            labels=[line.get("label", NO_LABEL) for line in rows.lines],
        )

    def _latents(self, rows: ShardRows, suffix: str) -> Tensor:
        """Return float32 latents [n, c, h, w], the mean where there are moments."""
        if self._codes is not None:
            return look_up(rows.tensors[f"indices{suffix}"], self._codes).contiguous()
        name = "mean" if "mean" in rows.tensors else "latents"
        return rows.tensors[f"{name}{suffix}"].to(torch.float32)

    def lists(self) -> FurtherLists:
        return _Statistics()


class _Statistics:
    def add(self, record: ShardRecord | ShardSummary, store: Store) -> None:
        """The index's own statistics are enough."""

    def write(self, store: Store, *, stats: Mapping[str, Any]) -> list[str]:
        if not stats["count"]:
            return []
        (name,) = _list_names(store)
        mean, std = float64_tensor(stats["mean"]), float64_tensor(stats["std"])
        store.write_whole(name, lightningdit.statistics_content(mean=mean, std=std))
        return [name]


_LAYOUTS: dict[str, type[ShardLayout]] = {
    layout.name: layout for layout in (_LightningDiT, _Mds, _Parquet, _Webdataset)
}


def shard_layout(plan: Plan, *, codes: Tensor | None = None) -> ShardLayout | None:
    """Return the layout of a plan's shards; None for this format's own.

    Args:
        plan: What the output is.
        codes: The codes [n, d] that are meant where numbers of codes are stored.
    """
    if plan.layout is None:
        return None
    return _LAYOUTS[plan.layout["name"]](read_columns(plan.layout["columns"]), codes=codes)


def layout_rows(tensors: Mapping[str, Tensor], rows: list[Row], *, plan: Plan) -> ShardRows:
    """Return a shard's rows as layouts take them.

    Args:
        tensors: The latents by name, [n, ...].
        rows: The n rows that have latents.
        plan: What the output is.
    """
    lines = []
    for row in rows:
        line: dict[str, Any] = {"sample": row.sample, "source": row.source}
        line |= {} if row.label is None else {"label": row.label}
        lines.append(json.loads(dump_json(line | ({"columns": row.columns} if row.columns else {}))))
    has_one_shape = "bucket_set" not in plan.preprocessing
    return ShardRows(tensors=tensors, lines=lines, has_one_shape=has_one_shape)


def _list_names(store: Store) -> tuple[str, ...]:
    assert isinstance(store, LaidOutStore)
    return store.lists


def _as_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
