"""Which shards of an output are left to do, and who does them: any number of processes, through the output's store."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import PurePosixPath

from ldm_vae.config.names import DetectChanges
from ldm_vae.encoding.buckets import Numbering, ShardImages
from ldm_vae.encoding.output import check_plan, withdraw_index
from ldm_vae.encoding.preprocessing import EncodingImages, ImageBatch, shard_batches, source_stamp
from ldm_vae.latents.shards import Plan, ShardRecord, numbers_digest, read_record
from ldm_vae.latents.summaries import ShardSummary, read_summary
from ldm_vae.system.leases import Leases
from ldm_vae.system.store import Store

_RECORDS = "latents-*.json"


class PendingShards(ABC):
    """The shards of an output that are not whole yet, and the images of those that this process claims.

    Args:
        store: The output.
        plan: What the output is.
        leases: The claims by which processes share the work.
        on_whole: Called with every shard that is whole already, or that another process wrote.
    """

    def __init__(
        self, store: Store, *, plan: Plan, leases: Leases, on_whole: Callable[[ShardRecord | ShardSummary], None]
    ) -> None:
        self._store, self._plan, self._leases, self._on_whole = store, plan, leases, on_whole

    @property
    @abstractmethod
    def num_left(self) -> int:
        """Number of pieces of work that are not done, by this or another process."""

    @property
    @abstractmethod
    def stems(self) -> list[str]:
        """Names of all shards, in order, without suffix."""

    @abstractmethod
    def batches(self, *, batch_size: int, num_workers: int, pin_memory: bool) -> Iterator[ImageBatch]:
        """Claim shards and yield their images; ends when those left are all claimed."""

    @abstractmethod
    def written(self, record: ShardRecord) -> None:
        """Note a shard that this process wrote."""

    @abstractmethod
    def find_vanished(self) -> None:
        """Count the shards that are not whole any more as left to do again."""

    def _claim_unless(self, is_done: Callable[[], bool], *, name: str) -> bool:
        """Claim a piece of work, unless it is done: before, or by another process between the look and the claim."""
        if is_done() or not self._leases.claim(name):
            return False
        if is_done():
            self._leases.release(name)
            return False
        return True

    def _record(self, stem: str) -> ShardSummary | None:
        """Return what is known of a shard that is whole, but for its rows."""
        return read_summary(self._store, stem=stem, plan_digest=self._plan.digest)


class ShardWork(PendingShards):
    """The shards of a collection with random access.

    Args:
        store: See `PendingShards`, as for `plan`, `leases` and `on_whole`.
        plan: What the output is.
        leases: The claims.
        numbering: Which images are in which shard.
        images: Reads the images.
        detect_changes: How changed sources are found. They are looked for once, here: shards that aren't current are
            taken back, and the index with them.
        on_whole: Called with whole shards.
    """

    def __init__(
        self,
        store: Store,
        *,
        plan: Plan,
        leases: Leases,
        numbering: Numbering,
        images: EncodingImages,
        detect_changes: DetectChanges,
        on_whole: Callable[[ShardRecord | ShardSummary], None],
    ) -> None:
        super().__init__(store, plan=plan, leases=leases, on_whole=on_whole)
        self._numbering, self.images, self._detect_changes = numbering, images, detect_changes
        self._left: dict[str, None] = dict.fromkeys(numbering.stems)
        self.num_changed = 0
        self._remove_surplus()
        there = set(store.names())
        there_of_these = [stem for stem in numbering.stems if f"{stem}.json" in there]
        for stem, record in zip(there_of_these, store.each(self._read, there_of_these), strict=True):
            if record is not None and not self._is_current(record):
                self.num_changed += 1
                store.remove(f"{stem}.json")
            elif record is not None:
                self._whole(record)
        if self._left:
            withdraw_index(store)

    @property
    def num_left(self) -> int:
        """Number of shards that are not whole."""
        return len(self._left)

    @property
    def stems(self) -> list[str]:
        """Names of all shards, in order, without suffix."""
        return self._numbering.stems

    def batches(self, *, batch_size: int, num_workers: int, pin_memory: bool) -> Iterator[ImageBatch]:
        """Claim shard after shard and yield their images; ends when those left are all claimed."""
        claims = self.claims()
        first = next(claims, None)
        if first is None:
            return
        yield from shard_batches(
            chain([first], claims), self.images, batch_size=batch_size, num_workers=num_workers, pin_memory=pin_memory
        )

    def written(self, record: ShardRecord) -> None:
        """Note a shard that this process wrote."""
        self._left.pop(record.stem, None)
        self._leases.finish(record.stem)

    def find_vanished(self) -> None:
        """Count the shards that are not whole any more as left to do again."""
        self._left = {stem: None for stem in self.stems if self._record(stem) is None}

    def _remove_surplus(self) -> None:
        """Remove shards that there are no images for, since changed sources went to other buckets."""
        stems = set(self.stems)
        for name in self._store.names():
            stem = PurePosixPath(name).stem
            if fnmatchcase(name, _RECORDS) and stem not in stems and self._record(stem) is not None:
                self._store.remove(name)
                self._store.remove(f"{stem}.safetensors")

    def claims(self) -> Iterator[ShardImages]:
        """Claim shard after shard and yield its images, until those left are all claimed."""
        for stem in list(self._left):
            check_plan(self._store, plan=self._plan)
            if self._claim_unless(functools.partial(self._done_elsewhere, stem), name=stem):
                yield self._numbering.shard(stem)

    def _done_elsewhere(self, stem: str) -> bool:
        record = self._record(stem)
        if record is not None and stem in self._left:
            self._whole(record)
        return record is not None

    def _whole(self, record: ShardRecord | ShardSummary) -> None:
        self._left.pop(record.stem, None)
        self._on_whole(record)

    def _read(self, stem: str) -> ShardRecord | ShardSummary | None:
        """Return what is known of a shard that is whole, with its rows where they are looked at."""
        if self._detect_changes == "off":
            return self._record(stem)
        return read_record(self._store, stem=stem, plan_digest=self._plan.digest)

    def _is_current(self, record: ShardRecord | ShardSummary) -> bool:
        """Whether a shard holds the images that it should, from the sources as they are now."""
        keys = self._numbering.shard(record.stem).keys
        if record.numbers != numbers_digest((key.sample, key.image) for key in keys):
            return False
        if isinstance(record, ShardSummary):  # sources that changed aren't looked for
            return True
        collection = self.images.collection
        return all(
            row.stamp == source_stamp(collection, row.image, detect_changes=self._detect_changes)
            for row in record.rows
        )
