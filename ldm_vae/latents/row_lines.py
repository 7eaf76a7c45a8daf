"""What is known of each row beside its latents: lines of samples.jsonl, or the records of the shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ldm_vae.latents.index import sample_lines
from ldm_vae.latents.mapping import MEND
from ldm_vae.latents.shard_table import ShardTable
from ldm_vae.latents.shards import SAMPLES, read_record
from ldm_vae.system.store import Store


class RowLines:
    """Lines of samples.jsonl, read when they are asked for.

    Args:
        store: The output.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._starts: np.ndarray | None = None

    def __getitem__(self, row: int) -> dict[str, Any]:
        if self._starts is None:
            lengths = [len(line) for line in self._lines()]
            self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        start, stop = self._starts[row], self._starts[row + 1]
        return json.loads(self._store.read_range(SAMPLES, int(start), int(stop - start)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from map(json.loads, self._lines())

    def _lines(self) -> Iterator[bytes]:
        if self._store.folder is not None:
            with open(self._store.place(SAMPLES), "rb") as file:
                yield from file
        else:
            yield from self._store.read(SAMPLES).splitlines(keepends=True)


class RecordLines:
    """The same lines from the shards' records, for an output of many shards, which has no samples.jsonl.

    Args:
        store: The output.
        shards: Its shards.
        plan: The digest of its plan.
    """

    def __init__(self, store: Store, *, shards: ShardTable, plan: str) -> None:
        self._store, self._shards, self._plan = store, shards, plan
        self._last: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __getitem__(self, row: int) -> dict[str, Any]:
        shard = int(np.searchsorted(self._shards.starts, row, side="right")) - 1
        return self._of(shard)[row - int(self._shards.starts[shard])]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for shard in range(len(self._shards)):
            yield from self._of(shard)

    def _of(self, shard: int) -> list[dict[str, Any]]:
        if self._last[0] != shard:
            stem = PurePosixPath(self._shards[shard]["file"]).stem
            record = read_record(self._store, stem=stem, plan_digest=self._plan)
            if record is None:
                raise ValueError(f"{self._store.place(stem)}.json is missing or damaged; {MEND}")
            self._last = (shard, list(sample_lines(record, first=int(self._shards.starts[shard]))))
        return self._last[1]
