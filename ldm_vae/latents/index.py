"""The index of an encoded collection, made from the records of its shards."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ldm_vae.latents.laid_out import layout_lists
from ldm_vae.latents.sealed import digest_json, dump_json, read_sealed, seal
from ldm_vae.latents.shard_table import ShardEntries, ShardTable
from ldm_vae.latents.shards import (
    CODEBOOK,
    FORMAT,
    INDEX,
    PLAN,
    PLAN_FIELDS,
    SAMPLES,
    SHARDS,
    SKIPPED,
    VERSION,
    Plan,
    Row,
    ShardRecord,
    read_record,
)
from ldm_vae.latents.statistics import ChannelMoments, Rounding
from ldm_vae.latents.summaries import ShardSummary, read_summary
from ldm_vae.system.files import sha256_file
from ldm_vae.system.output_kinds import LAID_OUT_LATENTS
from ldm_vae.system.places import open_store
from ldm_vae.system.store import Store, StoreError

T = TypeVar("T")


@dataclass(kw_only=True)
class IndexTotals:
    """What an index counts."""

    num_rows: int
    num_skipped: int
    num_bytes: int


def read_index(directory: str | Path | Store) -> dict[str, Any]:
    """Read the index of a folder of latents.

    Raises:
        ValueError: In one line, where there is none, it is damaged, of another format, or names files outside.
    """
    store = open_store(directory)
    path, folder = store.place(INDEX), store.place().rstrip("/")
    try:
        index = read_sealed(store, INDEX)
    except FileNotFoundError:
        _refuse_other_layout(store)
        if store.exists(PLAN):
            raise ValueError(f"{folder} isn't finished: start the same encode again, it does the rest") from None
        raise ValueError(f"{folder} holds no {INDEX}: it is no folder that `ldm-vae encode` wrote") from None
    except StoreError:
        raise
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if index is None:
        _refuse_other_layout(store)
        raise ValueError(f"{path} is damaged: start the same encode again, it writes it anew")
    if index.get("format") != FORMAT or index.get("version") != VERSION:
        raise ValueError(f"{path} is no index of {FORMAT}, version {VERSION}")
    try:
        _check_fields(index)
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} isn't as `ldm-vae encode` writes it ({type(error).__name__}: {error})") from None
    return index


def _refuse_other_layout(store: Store) -> None:
    if store.exists(LAID_OUT_LATENTS.mark):
        raise ValueError(
            f"{store.place().rstrip('/')} holds latents in another trainer's layout, which aren't read here; encode "
            f"without --layout, and `latents export` them"
        )


def plan_digest(index: dict[str, Any]) -> str:
    """Return the digest of the plan that an index, or plan.json, tells."""
    return digest_json({key: index[key] for key in PLAN_FIELDS if key != "layout" or key in index})


def read_index_totals(store: Store, *, plan: Plan) -> IndexTotals | None:
    """Return what the index of an output counts; None where it or one of its lists isn't there, or isn't whole."""
    try:
        index = read_index(store)
        lists = (*((SAMPLES, SKIPPED) if isinstance(index["shards"], list) else ()), *layout_lists(store))
        lists_are_whole = all(store.sha256(name) == index["files"][name] for name in lists)
        num_bytes = ShardTable.of(index, store).num_bytes
    except StoreError:
        raise
    except (ValueError, KeyError, FileNotFoundError):
        return None
    if not lists_are_whole or plan_digest(index) != plan.digest:
        return None
    return IndexTotals(num_rows=index["num_rows"], num_skipped=index["num_skipped"], num_bytes=num_bytes)


class FurtherLists(Protocol):
    """Lists that the layout of an output's shards has for itself."""

    def add(self, record: ShardRecord | ShardSummary, store: Store) -> None:
        """Take the next shard."""

    def write(self, store: Store, *, stats: Mapping[str, Any]) -> list[str]:
        """Write the lists and return their names in the store; `stats` are those of the index."""


def write_index(
    folder: Path | Store, *, plan: Plan, stems: Sequence[str], further: FurtherLists | None = None
) -> IndexTotals:
    """Write the lists and, last, index.json, from the records of whole shards, in order.

    The lists are samples.jsonl and skipped.jsonl or, where there are many shards, shards.npy.

    Raises:
        FileNotFoundError: A shard is not whole.
    """
    store = open_store(folder)
    sums = _Sums(len(stems), store=store, further=further)
    if sums.entries.are_many:
        for summary in _whole(store, stems, functools.partial(read_summary, store, plan_digest=plan.digest)):
            sums.add(summary)
        content = sums.entries.to_bytes()
        store.write_whole(SHARDS, content)
        digests = {SHARDS: hashlib.sha256(content).hexdigest()}
    else:
        digests = _write_lists(store, plan=plan, stems=stems, sums=sums)
    if plan.mode == "indices":
        digests[CODEBOOK] = store.sha256(CODEBOOK)
    if further is not None:
        names = further.write(store, stats=sums.moments.statistics())
        digests |= {name: store.sha256(name) for name in names}
    store.write_whole(INDEX, seal(sums.index(plan, digests=digests), indent=1))
    return sums.totals


def _write_lists(store: Store, *, plan: Plan, stems: Sequence[str], sums: _Sums) -> dict[str, str]:
    """Write samples.jsonl and skipped.jsonl, add the records to the sums, and return the lists' digests."""
    with store.writing(SAMPLES) as samples_path, store.writing(SKIPPED) as skipped_path:
        with open(samples_path, "wb") as samples, open(skipped_path, "wb") as skipped:
            for record in _whole(store, stems, functools.partial(read_record, store, plan_digest=plan.digest)):
                for line in sample_lines(record, first=sums.totals.num_rows):
                    samples.write(dump_json(line))
                for row in record.rows:
                    if row.reason is not None:
                        skipped.write(dump_json({**_where(row), "reason": row.reason}))
                sums.add(record)
        return {SAMPLES: sha256_file(samples_path), SKIPPED: sha256_file(skipped_path)}


def _whole(store: Store, stems: Sequence[str], read: Callable[..., T | None]) -> Iterator[T]:
    """Yield what is read of each shard, in order."""
    for stem, record in zip(stems, store.each(lambda stem: read(stem=stem), stems), strict=True):
        if record is None:
            raise FileNotFoundError(f"{store.place(stem)}.safetensors is missing or not whole")
        yield record


def sample_lines(record: ShardRecord, *, first: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of samples.jsonl for a shard's rows, the first of which is row `first` of the output."""
    number = first
    for row in record.rows:
        if row.reason is None:
            line: dict[str, Any] = {"row": number, **_where(row), "shard": f"{record.stem}.safetensors"}
            line |= {"size": row.size} if row.size is not None else {}
            line |= {"label": row.label} if row.label is not None else {}
            yield line | ({"columns": row.columns} if row.columns else {})
            number += 1


class _Sums:
    """Sums over the records, in the order of the shards."""

    def __init__(self, num_shards: int, *, store: Store, further: FurtherLists | None) -> None:
        self._store, self._further = store, further
        self.totals = IndexTotals(num_rows=0, num_skipped=0, num_bytes=0)
        self.entries = ShardEntries(num_shards)
        self.moments = ChannelMoments()
        self.rounding: dict[str, Rounding] = {}

    def add(self, record: ShardRecord | ShardSummary) -> None:
        self.totals.num_rows += record.count
        self.totals.num_skipped += record.num_images - record.count
        self.totals.num_bytes += record.size
        self.entries.add(
            stem=record.stem, count=record.count, shape=record.shape, size=record.size, sha256=record.sha256
        )
        self.moments = self.moments.merge(record.moments)
        for name, rounding in record.rounding.items():
            self.rounding[name] = self.rounding.get(name, Rounding()).merge(rounding)
        if self._further is not None:
            self._further.add(record, self._store)

    def index(self, plan: Plan, *, digests: dict[str, str]) -> dict[str, Any]:
        return {
            **plan.to_json(),
            "num_rows": self.totals.num_rows,
            "num_skipped": self.totals.num_skipped,
            "files": digests,
            "stats": self.moments.statistics(),
            "rounding_error": {name: rounding.summary() for name, rounding in sorted(self.rounding.items())},
            "shards": self.entries.for_index(),
        }


def _where(row: Row) -> dict[str, Any]:
    other_number = {"image": row.image} if row.image != row.sample else {}
    return {"sample": row.sample, **other_number, "source": row.source}


def _check_fields(index: dict[str, Any]) -> None:
    """Look at what readers rely on, in an index whose digest is right: somebody else may have written it."""
    assert index["mode"] in ("moments", "mean", "sample", "indices"), "mode"
    assert isinstance(index["flip"], bool), "flip"
    assert isinstance(index["stats"]["count"], int), "stats"
    assert {"encoder", "fingerprint", "scaling_factor", "shift_factor"} <= index["vae"].keys(), "vae"
    assert isinstance(index["preprocessing"], dict), "preprocessing"
    assert isinstance(index["num_rows"], int), "num_rows"
    if isinstance(index["shards"], dict):
        assert index["shards"]["file"] == SHARDS, "shards"
        assert isinstance(index["shards"]["count"], int), "shards"
        assert isinstance(index["files"][SHARDS], str), "files"
        return
    for shard in index["shards"]:
        assert isinstance(shard["file"], str), "file"
        assert re.fullmatch(r"latents-[\w.-]+\.safetensors", shard["file"]), f"file {shard['file']!r}"
        assert isinstance(shard["sha256"], str), "sha256"
        assert len(shard["shape"]) == 3, "shape"
        assert all(isinstance(n, int) and n >= 0 for n in (*shard["shape"], shard["count"], shard["size"])), "numbers"
    assert index["num_rows"] == sum(shard["count"] for shard in index["shards"]), "num_rows"
