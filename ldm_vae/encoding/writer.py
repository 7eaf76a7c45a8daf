"""Writes shards in a thread of its own, so that the encoder never waits for rounding, hashing or the disk."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ldm_vae.config.rules import FieldError, mark
from ldm_vae.latents.codebook import look_up
from ldm_vae.latents.layouts.shard_layouts import layout_rows, shard_layout
from ldm_vae.latents.shards import (
    CHECKSUMS,
    FORMAT,
    NO_LABEL,
    Plan,
    Row,
    ShardRecord,
    read_record,
    row_checksums,
    tensor_names,
)
from ldm_vae.latents.statistics import ChannelMoments, Rounding, RowMoments, RowRounding
from ldm_vae.models.precision import DTYPES
from ldm_vae.system.files import sha256_file
from ldm_vae.system.places import open_store
from ldm_vae.system.store import Store
from ldm_vae.system.tensors import write_tensors
from ldm_vae.system.text import printable

QUEUED_BATCHES = 16
STORED_DTYPES = DTYPES | {"uint8": torch.uint8, "uint16": torch.uint16, "int32": torch.int32}


@dataclass(kw_only=True)
class EncodedBatch:
    """A piece of a shard, in order."""

    stem: str
    rows: list[Row]
    """One row per image of the batch, skipped ones included. Those whose `reason` is None are in `tensors`."""
    tensors: dict[str, Tensor]
    """float32 [n, c, h, w], or numbers of codes [n, 1, h, w]; on the CPU, or on their way there until `ready`."""
    shape: tuple[int, int, int]
    """[c, h, w] of a row's tensors."""
    last: bool
    """Whether the shard is complete with it."""
    ready: torch.cuda.Event | None = None
    num_by_device: int = 0
    """Images whose JPEG files the device decoded."""


@dataclass(kw_only=True)
class _OpenShard:
    """What of a shard has come so far, in the type it is stored in."""

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    moments: list[RowMoments] = field(default_factory=list)
    rounding: dict[str, list[RowRounding]] = field(default_factory=dict)


class ShardWriter:
    """Takes batches in order and writes each shard when its last batch has come.

    Use it as a context manager: leaving it waits for all that was handed over. What went wrong in the thread (a full
    disk, latents that are no finite numbers) is raised by the next `add`, or on leaving.

    Args:
        folder: The output: a folder, an address or a store.
        plan: What the output is.
        codes: The codes [n, d] that are meant where numbers of codes are stored.
        on_written: Called in the writer's thread with the record of each shard that is whole.
    """

    def __init__(
        self,
        folder: Path | Store,
        *,
        plan: Plan,
        codes: Tensor | None = None,
        on_written: Callable[[ShardRecord], None],
    ) -> None:
        self._store, self._plan, self._codes, self._on_written = open_store(folder), plan, codes, on_written
        self._layout = shard_layout(plan, codes=codes)
        self._open: dict[str, _OpenShard] = {}
        self._queue: queue.Queue[EncodedBatch | None] = queue.Queue(maxsize=QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shard writer", daemon=True)

    def __enter__(self) -> ShardWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def add(self, batch: EncodedBatch) -> None:
        """Hand over a batch; waits only where the disk is far behind."""
        self._raise()
        self._queue.put(batch)

    def wait(self) -> None:
        """Wait until all that was handed over is on the disk."""
        self._queue.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        torch.set_num_threads(1)  # of this one: where workers decode on all cores, several would wait for each other
        while (batch := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._take(batch)
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()

    def _take(self, batch: EncodedBatch) -> None:
        if batch.ready is not None:
            batch.ready.synchronize()
        shard = self._open.setdefault(batch.stem, _OpenShard())
        shard.rows += batch.rows
        dtype = STORED_DTYPES[self._plan.dtype]
        stored = {name: values.to(dtype).contiguous() for name, values in batch.tensors.items()}
        for name, values in stored.items():
            shard.tensors.setdefault(name, []).append(values)
            if self._codes is None:
                _check_finite(values, batch=batch, dtype=self._plan.dtype)
                shard.rounding.setdefault(name, []).append(RowRounding.of(batch.tensors[name], stored=values))
        if self._codes is not None and stored:
            shard.moments.append(RowMoments.of(look_up(stored["indices"], self._codes)))
        elif stored:
            main = stored["mean"] if "mean" in stored else stored["latents"]
            shard.moments.append(RowMoments.of(main, std=stored.get("std")))
        if batch.last:
            self._write(self._open.pop(batch.stem), batch)

    def _write(self, shard: _OpenShard, batch: EncodedBatch) -> None:
        theirs = read_record(self._store, stem=batch.stem, plan_digest=self._plan.digest)
        if theirs is not None:  # a process that took this one's lease over was faster; its device may round otherwise
            self._on_written(theirs)
            return
        read = [row for row in shard.rows if row.reason is None]
        latents = {}
        for name in tensor_names(mode=self._plan.mode, flip=self._plan.flip):
            parts = shard.tensors.pop(name, [])
            empty = torch.zeros(0, *batch.shape, dtype=STORED_DTYPES[self._plan.dtype])
            latents[name] = torch.cat(parts) if parts else empty
        layout, plan = self._layout, self._plan

        def write(path: Path) -> dict[str, Any] | None:
            if layout is not None:
                return layout.write(path, layout_rows(latents, read, plan=plan))
            write_latents(path, latents, rows=read, plan=plan, stem=batch.stem)
            return None

        record = write_shard(
            self._store, stem=batch.stem, plan=plan, write=write, rows=shard.rows,
            moments=ChannelMoments.of_rows(shard.moments), shape=batch.shape,
            rounding={name: Rounding.of_rows(rows) for name, rows in shard.rounding.items()},
        )  # fmt: skip
        self._on_written(record)


def write_latents(path: Path, latents: dict[str, Tensor], *, rows: list[Row], plan: Plan, stem: str) -> None:
    """Write a shard of this format's own: latents [n, c, h, w] of n rows, their numbers, labels and checksums."""
    tensors = {"sample": torch.tensor([row.sample for row in rows], dtype=torch.int64)}
    if any(row.label is not None for row in rows):
        labels = [NO_LABEL if row.label is None else row.label for row in rows]
        tensors["labels"] = torch.tensor(labels, dtype=torch.int64)
    tensors |= latents
    # A single key: safetensors writes several in no fixed order.
    metadata = {"ldm_vae": json.dumps({"format": FORMAT, "plan": plan.digest, "stem": stem}, sort_keys=True)}
    write_tensors(path, {**tensors, CHECKSUMS: row_checksums(tensors)}, metadata=metadata)


def write_shard(
    store: Store,
    *,
    stem: str,
    plan: Plan,
    write: Callable[[Path], dict[str, Any] | None],
    rows: list[Row],
    moments: ChannelMoments,
    rounding: dict[str, Rounding],
    shape: tuple[int, int, int],
) -> ShardRecord:
    """Write a shard, then the record that makes it whole.

    Args:
        store: The output.
        stem: Name of the shard's files, without suffix.
        plan: What the output is.
        write: Writes the shard's file, and returns what its layout has to know of it, if anything.
        rows: Every image of the shard; those without a reason are the file's rows, in order.
        moments: Moments of the shard's latents.
        rounding: What was rounded off each tensor.
        shape: [c, h, w] of a latent.
    """
    with store.writing(f"{stem}.safetensors") as temporary:
        layout = write(temporary)
        size, sha256 = temporary.stat().st_size, sha256_file(temporary)
        record = ShardRecord(
            stem=stem, plan=plan.digest, size=size, sha256=sha256, shape=list(shape), rows=rows,
            moments=moments, rounding=rounding, layout=layout,
        )  # fmt: skip
        if _other_record(store, record):
            store.remove(f"{stem}.json")  # it must never stand beside another shard than its own
    store.write_whole(f"{stem}.json", record.to_bytes())
    return record


def _other_record(store: Store, record: ShardRecord) -> bool:
    """Whether another record is there than this one."""
    try:
        return store.read(f"{record.stem}.json") != record.to_bytes()
    except FileNotFoundError:
        return False


def _check_finite(stored: Tensor, *, batch: EncodedBatch, dtype: str) -> None:
    finite = torch.isfinite(stored).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = [row for row in batch.rows if row.reason is None][int(finite.logical_not().nonzero()[0])]
        raise FieldError(
            f"the latents of {printable(bad.source)} are no finite numbers in {dtype}; try {mark('dtype')} float32, "
            f"or {mark('mixed_precision')} no"
        )
