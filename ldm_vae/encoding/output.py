"""The folder of an encode: whose it is, what is damaged in it, and when its index is withdrawn."""

from __future__ import annotations

import os
import time
import warnings
import zlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from ldm_vae.config.rules import FieldError, require
from ldm_vae.latents.laid_out import LaidOutStore, layout_lists
from ldm_vae.latents.sealed import read_sealed, seal
from ldm_vae.latents.shards import INDEX, PLAN, SAMPLES, SHARDS, SKIPPED, Plan, differences, read_record
from ldm_vae.latents.summaries import read_summary
from ldm_vae.system.leases import Leases
from ldm_vae.system.output_kinds import LAID_OUT_LATENTS, LATENTS
from ldm_vae.system.output_stores import is_marked_store, output_at
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.store import Store
from ldm_vae.system.telling import Note

OVERWRITE = "overwrite"
_POLL_SECONDS = 0.2
_REPLACE_SECONDS = 60.0
_DIGEST_PARTS = 64


def open_output(store: Store, *, plan: Plan, overwrite: bool, leases: Leases) -> None:
    """Make a folder the output of `plan`, or find that it is already.

    Processes of one job may all be told to overwrite: the first of them empties the folder, the others join it.

    Raises:
        ValueError: It is the output of another plan, naming what differs, or holds something else.
    """
    _refuse_other_layout(store)
    if not overwrite:
        _mend_plan(store, plan)
    elif _read_plan(store) is not None:
        _replace(store, plan=plan, leases=leases)
    if _read_plan(store) is None:
        _output(store).check(overwrite=overwrite)
        store.create(PLAN, seal(plan.to_json()), sync=True)  # unless another process already has
    check_plan(store, plan=plan)


def check_plan(store: Store, *, plan: Plan) -> None:
    """Raise `ValueError`, naming what differs, where a folder is the output of another plan."""
    differing = differences(_read_plan(store) or plan.to_json(), plan.to_json())
    if differing:
        raise FieldError(
            f"<output> {shown(store)} holds latents of another kind ({'; '.join(differing)}); take another folder, or "
            f"<overwrite> them"
        )


def _output(store: Store) -> OutputFolder:
    """Return the folder or the address of an output, with the files by the names that they have there."""
    if isinstance(store, LaidOutStore):
        return output_at(store.inner, kind=LAID_OUT_LATENTS)
    return output_at(store, kind=LATENTS)


def _refuse_other_layout(store: Store) -> None:
    """Raise `FieldError` where this format's own shards would come to lie beside another layout's."""
    here, other = (store.inner, LATENTS) if isinstance(store, LaidOutStore) else (store, LAID_OUT_LATENTS)
    require(
        not is_marked_store(here, other),
        f"<output> {shown(store)} holds an encode in another layout; take another folder, or give its <layout>",
    )


def _replace(store: Store, *, plan: Plan, leases: Leases) -> None:
    busy = FieldError(f"<output> {shown(store)}: another encode is at work there; stop it before you <overwrite> it")
    deadline = time.monotonic() + _REPLACE_SECONDS
    while not leases.claim(OVERWRITE):  # held until its process ends, so that the others of its job know
        if _read_plan(store) == plan.to_json():
            return
        if time.monotonic() > deadline:
            raise busy
        time.sleep(_POLL_SECONDS)
    if leases.taken_elsewhere():
        if _read_plan(store) == plan.to_json():  # the first of its job has ended, but not all the others
            return
        raise busy
    _output(store).clear(mark_first=True)


def _read_plan(store: Store) -> dict[str, Any] | None:
    """Return the plan of an output: None where there is none, without fields where it is damaged."""
    try:
        return read_sealed(store, PLAN) or {}
    except FileNotFoundError:
        return None


def _mend_plan(store: Store, plan: Plan) -> None:
    """Write a damaged plan.json anew where the shards that are there show that it was this plan."""
    if _read_plan(store) != {}:
        return
    stems = _shard_stems(store)
    require(
        not stems or any(read_record(store, stem=stem, plan_digest=plan.digest) is not None for stem in stems),
        f"{store.place(PLAN)} is damaged, and none of the shards there is of this encode; start the encode that wrote "
        f"them again, or give <overwrite> to replace them",
    )
    warnings.warn(f"{store.place(PLAN)} was damaged; it is written anew", Note, stacklevel=2)
    store.write_whole(PLAN, seal(plan.to_json()))


def take_back_damaged(store: Store, *, plan: Plan, leases: Leases, on_shard: Callable[[bool], None]) -> None:
    """Compare every whole shard of an output with its digest, and have damaged ones encoded again.

    The records of damaged shards are removed, so that these shards count as missing. Processes that start together
    divide the shards among themselves: each claims parts of the list, and holds what it has done until it ends. A part
    whose process died is taken over.

    Args:
        store: The output.
        plan: What the output is.
        leases: The claims by which processes share the work.
        on_shard: Called after each shard, with whether it is damaged.
    """
    parts: dict[int, list[str]] = {}
    for stem in _shard_stems(store):
        parts.setdefault(zlib.crc32(stem.encode()) % _DIGEST_PARTS, []).append(stem)

    def check(part: int) -> bool:
        """Check the shards of a part; False where another process is at it."""
        if not leases.claim(_part_name(part)):
            return False
        for stem in parts[part]:
            record = read_summary(store, stem=stem, plan_digest=plan.digest)
            if record is not None:
                is_damaged = _digest(store, f"{stem}.safetensors") != record.sha256
                if is_damaged:
                    store.remove(f"{stem}.json")
                on_shard(is_damaged)
        leases.claim(_done_name(part))
        return True

    taken = [part for part in _from_some(list(parts)) if not leases.is_held(_done_name(part)) and not check(part)]
    while taken:  # by others: they say when it is done, end, or die
        time.sleep(_POLL_SECONDS)
        open_parts = [p for p in taken if leases.is_held(_part_name(p)) and not leases.is_held(_done_name(p))]
        taken = [part for part in open_parts if not check(part)]


def withdraw_index(store: Store) -> None:
    """Remove the index of an output that is not whole any more."""
    for name in (INDEX, SAMPLES, SKIPPED, SHARDS, *layout_lists(store)):
        store.remove(name)


def output_store(store: Store, *, plan: Plan) -> Store:
    """Return the store of an output of `plan` whose files lie in `store`."""
    return store if plan.layout is None else LaidOutStore(store, plan.layout["name"])


def shown(store: Store) -> str:
    """Return what messages call an output."""
    return store.place().rstrip("/")


def _shard_stems(store: Store) -> list[str]:
    """Return the sorted names, without suffix, of the shards' files that are there."""
    names = [name for name in store.names() if fnmatchcase(name, "latents-[0-9]*.safetensors")]
    return [name.removesuffix(".safetensors") for name in names]


def _digest(store: Store, name: str) -> str | None:
    try:
        return store.sha256(name)
    except FileNotFoundError:  # taken away meanwhile
        return None


def _from_some(parts: list[int]) -> list[int]:
    """Return all parts, beginning with another one in each process, so that few meet."""
    start = os.getpid() % max(len(parts), 1)
    return [*parts[start:], *parts[:start]]


def _part_name(part: int) -> str:
    return f"digests-{part}"


def _done_name(part: int) -> str:
    return f"digests-{part}.done"
