"""Which shards of an output are left to do, and who does them: any number of processes, through the file system."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ldm_vae.config.names import DetectChanges
from ldm_vae.encoding.buckets import Numbering
from ldm_vae.encoding.preprocessing import EncodingImages, ImageBatch, shard_batches, source_stamp
from ldm_vae.latents.shards import (
    INDEX,
    PLAN,
    SAMPLES,
    SKIPPED,
    Plan,
    ShardRecord,
    differences,
    dump_json,
    read_record,
)
from ldm_vae.system.files import Leases, write_whole
from ldm_vae.system.outputs import LATENTS, OutputFolder

_OVERWRITE = "overwrite"
_SHARDS = "latents-*"
_POLL_SECONDS = 0.2
_REPLACE_SECONDS = 60.0


def open_output(folder: Path, *, plan: Plan, overwrite: bool, leases: Leases) -> None:
    """Make a folder the output of `plan`, or find that it is already.

    Processes of one job may all be told to overwrite: the first of them empties the folder, the others join it.

    Raises:
        ValueError: it is the output of another plan, naming what differs, or holds something else.
    """
    if overwrite and _read_plan(folder) is not None:
        _replace(folder, plan=plan, leases=leases)
    if _read_plan(folder) is None:
        OutputFolder(folder, kind=LATENTS).check(overwrite=overwrite)
        _write_plan_first(folder, plan)
    check_plan(folder, plan=plan)


def check_plan(folder: Path, *, plan: Plan) -> None:
    """Raise `ValueError`, naming what differs, where a folder is the output of another plan."""
    differing = differences(_read_plan(folder) or plan.to_json(), plan.to_json())
    if differing:
        raise ValueError(
            f"--output {folder} holds latents of another kind ({'; '.join(differing)}); take another folder, or "
            f"--overwrite to replace them"
        )


def _replace(folder: Path, *, plan: Plan, leases: Leases) -> None:
    busy = ValueError(f"--output {folder}: another encode is at work there; stop it before --overwrite")
    deadline = time.monotonic() + _REPLACE_SECONDS
    while not leases.claim(_OVERWRITE):  # held until its process ends, so that the others of its job know
        if _read_plan(folder) == plan.to_json():
            return
        if time.monotonic() > deadline:
            raise busy
        time.sleep(_POLL_SECONDS)
    if leases.taken_elsewhere():
        raise busy
    OutputFolder(folder, kind=LATENTS).clear(mark_first=True)


def _read_plan(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / PLAN).read_bytes())
    except FileNotFoundError:
        return None


def _write_plan_first(folder: Path, plan: Plan) -> None:
    """Write the plan unless another process already has."""
    leftover = folder / f".{PLAN}.{os.getpid()}"
    write_whole(leftover, dump_json(plan.to_json()))
    try:
        os.link(leftover, folder / PLAN)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(leftover, folder / PLAN)
    finally:
        leftover.unlink(missing_ok=True)


class Work:
    """The shards of a collection that are not whole yet, and the images of those that this process claims.

    Args:
        folder: of the output.
        plan: of the output.
        leases: by which processes share the work.
        numbering: which images are in which shard.
        images: reads them.
        detect_changes: how changed sources are found. Looked at once, here: shards that aren't current are taken back,
            and the index with them.
        on_whole: told of every shard that is whole already, or that another process wrote.
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
        """Shards that are not whole."""
        return len(self._left)

    @property
    def stems(self) -> list[str]:
        """Of all shards, in order."""
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

    def look_again(self) -> None:
        """Find shards that vanished since they were whole."""
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


def withdraw_index(folder: Path) -> None:
    """Remove the index of an output that is not whole any more."""
    for name in (INDEX, SAMPLES, SKIPPED):
        (folder / name).unlink(missing_ok=True)
