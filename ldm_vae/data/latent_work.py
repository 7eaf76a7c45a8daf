"""Which shards of an output are left to do, and who does them: any number of processes, through the file system."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ldm_vae.data.files import Leases, write_whole
from ldm_vae.data.shards import INDEX, PLAN, SAMPLES, SKIPPED, Plan, ShardRecord, differences, dump_json, read_record

_OVERWRITE = "overwrite"
_SHARDS = "latents-*"
_OURS = (PLAN, INDEX, SAMPLES, SKIPPED, "headers.jsonl")
_POLL_SECONDS = 0.2


def open_output(folder: Path, *, plan: Plan, overwrite: bool, leases: Leases) -> None:
    """Make a folder the output of `plan`, or find that it is already.

    Processes of one job may all be told to overwrite: the first of them empties the folder, the others join it.

    Raises:
        ValueError: it is the output of another plan, naming what differs, or holds something else.
    """
    if overwrite and _read_plan(folder) is not None:
        _replace(folder, plan=plan, leases=leases)
    if _read_plan(folder) is None:
        others = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        if others and not overwrite:
            raise ValueError(
                f"--output {folder} holds other things ({others[0]}); take an empty folder, or --overwrite true"
            )
        _write_plan_first(folder, plan)
    check_plan(folder, plan=plan)


def check_plan(folder: Path, *, plan: Plan) -> None:
    """Raise `ValueError`, naming what differs, where a folder is the output of another plan."""
    differing = differences(_read_plan(folder) or plan.to_json(), plan.to_json())
    if differing:
        raise ValueError(
            f"--output {folder} holds latents of another kind ({'; '.join(differing)}); take another folder, or "
            f"--overwrite true to replace them"
        )


def _replace(folder: Path, *, plan: Plan, leases: Leases) -> None:
    while not leases.claim(_OVERWRITE):  # held until its process ends, so that the others of its job know
        if _read_plan(folder) == plan.to_json():
            return
        time.sleep(_POLL_SECONDS)
    if leases.taken_elsewhere():
        raise ValueError(f"--output {folder}: another encode is at work there; stop it before --overwrite")
    _clear(folder)


def _read_plan(folder: Path) -> dict | None:
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


def _clear(folder: Path) -> None:
    """Remove what an encode wrote, the plan first and nothing else."""
    for path in (*(folder / name for name in _OURS), *folder.glob(f"{_SHARDS}.json")):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"{_SHARDS}.safetensors"):
        path.unlink(missing_ok=True)


class Work:
    """The shards that are not whole yet.

    Args:
        folder: of the output.
        plan: of the output.
        leases: by which processes share the work.
        stems: of all shards, in order.
        is_current: whether a whole shard's sources are still those that it was made from; asked once, here. Shards
            that aren't current are taken back, and the index with them.
        on_whole: told of every shard that is whole already, or that another process wrote.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plan: Plan,
        leases: Leases,
        stems: list[str],
        is_current: Callable[[ShardRecord], bool],
        on_whole: Callable[[ShardRecord], None],
    ) -> None:
        self.folder, self.plan, self.leases, self.stems, self.on_whole = folder, plan, leases, stems, on_whole
        self.left: dict[str, None] = dict.fromkeys(stems)
        """Stems of shards that are not whole, in order."""
        self.num_changed = 0
        for stem in stems:
            record = self._record(stem)
            if record is not None and not is_current(record):
                self.num_changed += 1
                (folder / f"{stem}.json").unlink(missing_ok=True)
            elif record is not None:
                self._whole(record)
        if self.left:
            for name in (INDEX, SAMPLES, SKIPPED):
                (folder / name).unlink(missing_ok=True)

    def claims(self) -> Iterator[str]:
        """Claim shard after shard, until those left are all claimed by others or by this process."""
        for stem in list(self.left):
            check_plan(self.folder, plan=self.plan)
            if stem in self.left and not self._done_elsewhere(stem) and self.leases.claim(stem):
                if self._done_elsewhere(stem):  # between the look and the claim
                    self.leases.release(stem)
                else:
                    yield stem

    def written(self, record: ShardRecord) -> None:
        """Note a shard that this process wrote."""
        self.left.pop(record.stem, None)
        self.leases.release(record.stem)

    def look_again(self) -> None:
        """Find shards that vanished since they were whole."""
        self.left = {stem: None for stem in self.stems if self._record(stem) is None}

    def _done_elsewhere(self, stem: str) -> bool:
        record = self._record(stem)
        if record is not None:
            self._whole(record)
        return record is not None

    def _whole(self, record: ShardRecord) -> None:
        self.left.pop(record.stem, None)
        self.on_whole(record)

    def _record(self, stem: str) -> ShardRecord | None:
        return read_record(self.folder, stem=stem, plan_digest=self.plan.digest)
