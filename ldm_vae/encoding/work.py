"""Which shards of an output are left to do, and who does them: any number of processes, through the file system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

from ldm_vae.config.names import DetectChanges
from ldm_vae.encoding.buckets import Numbering
from ldm_vae.encoding.output import check_plan, withdraw_index
from ldm_vae.encoding.preprocessing import EncodingImages, ImageBatch, shard_batches, source_stamp
from ldm_vae.latents.shards import Plan, ShardRecord, read_record
from ldm_vae.system.files import Leases

_SHARDS = "latents-*"


class PendingShards(Protocol):
    """The shards of an output that are not whole yet, and the images of those that this process claims."""

    @property
    def num_left(self) -> int:
        """Number of pieces of work that are not done, by this or another process."""

    @property
    def stems(self) -> list[str]:
        """Names of all shards, in order, without suffix."""

    def batches(self, *, batch_size: int, num_workers: int, pin_memory: bool) -> Iterator[ImageBatch]:
        """Claim shards and yield their images; ends when those left are all claimed."""

    def written(self, record: ShardRecord) -> None:
        """Note a shard that this process wrote."""

    def find_vanished(self) -> None:
        """Take up again the shards that are not whole any more."""


class ShardWork:
    """`PendingShards` of a collection with random access.

    Args:
        folder: The output.
        plan: What the output is.
        leases: The claims by which processes share the work.
        numbering: Which images are in which shard.
        images: Reads the images.
        detect_changes: How changed sources are found. They are looked for once, here: shards that aren't current are
            taken back, and the index with them.
        on_whole: Called with every shard that is whole already, or that another process wrote.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plan: Plan,
        leases: Leases,
        numbering: Numbering,
        images: EncodingImages,
        detect_changes: DetectChanges,
        on_whole: Callable[[ShardRecord], None],
    ) -> None:
        self._folder, self._plan, self._leases, self._numbering = folder, plan, leases, numbering
        self._images, self._detect_changes, self._on_whole = images, detect_changes, on_whole
        self._left: dict[str, None] = dict.fromkeys(numbering.stems)
        self.num_changed = 0
        self._remove_surplus()
        for stem in numbering.stems:
            record = self._record(stem)
            if record is not None and not self._is_current(record):
                self.num_changed += 1
                (folder / f"{stem}.json").unlink(missing_ok=True)
            elif record is not None:
                self._whole(record)
        if self._left:
            withdraw_index(folder)

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
        claims = self._claims()
        first = next(claims, None)
        if first is None:
            return
        shards = (self._numbering.shard(stem) for stem in chain([first], claims))
        yield from shard_batches(
            shards, self._images, batch_size=batch_size, num_workers=num_workers, pin_memory=pin_memory
        )

    def written(self, record: ShardRecord) -> None:
        """Note a shard that this process wrote."""
        self._left.pop(record.stem, None)
        self._leases.release(record.stem)

    def find_vanished(self) -> None:
        """Take up again the shards that are not whole any more."""
        self._left = {stem: None for stem in self.stems if self._record(stem) is None}

    def _remove_surplus(self) -> None:
        """Remove shards that there are no images for, since changed sources went to other buckets."""
        stems = set(self.stems)
        for path in self._folder.glob(f"{_SHARDS}.json"):
            if path.stem not in stems and self._record(path.stem) is not None:
                path.unlink(missing_ok=True)
                path.with_suffix(".safetensors").unlink(missing_ok=True)

    def _claims(self) -> Iterator[str]:
        for stem in list(self._left):
            check_plan(self._folder, plan=self._plan)
            if self._done_elsewhere(stem) or not self._leases.claim(stem):
                continue
            if self._done_elsewhere(stem):  # between the look and the claim
                self._leases.release(stem)
            else:
                yield stem

    def _done_elsewhere(self, stem: str) -> bool:
        record = self._record(stem)
        if record is not None and stem in self._left:
            self._whole(record)
        return record is not None

    def _whole(self, record: ShardRecord) -> None:
        self._left.pop(record.stem, None)
        self._on_whole(record)

    def _record(self, stem: str) -> ShardRecord | None:
        return read_record(self._folder, stem=stem, plan_digest=self._plan.digest)

    def _is_current(self, record: ShardRecord) -> bool:
        """Whether a shard holds the images that it should, from the sources as they are now."""
        keys = self._numbering.shard(record.stem).keys
        if [(row.sample, row.image) for row in record.rows] != [(key.sample, key.image) for key in keys]:
            return False
        if self._detect_changes == "off":
            return True
        collection = self._images.collection
        return all(
            row.stamp == source_stamp(collection, row.image, detect_changes=self._detect_changes)
            for row in record.rows
        )
