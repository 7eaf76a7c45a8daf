"""What a shard's record says of the shard as a whole, read without its rows: where there are very many shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ldm_vae.latents.sealed import SEAL, is_sealed
from ldm_vae.latents.shards import ShardRecord, is_record_of, read_record
from ldm_vae.latents.statistics import ChannelMoments, Rounding
from ldm_vae.system.store import Store

_ROWS, _BEHIND_ROWS = b'"rows":[', b'],"moments":{'
"""Quotes within a JSON text are escaped, so the first and the last of these in a record stand around its rows."""


@dataclass(kw_only=True)
class ShardSummary:
    """A `ShardRecord` but for its rows; the fields are its own, and what it knows of them."""

    stem: str
    plan: str
    size: int
    sha256: str
    shape: list[int]
    moments: ChannelMoments
    rounding: dict[str, Rounding]
    layout: dict[str, Any] | None = None
    count: int
    num_images: int
    numbers: str

    @classmethod
    def of(cls, record: ShardRecord) -> ShardSummary:
        """Return the summary of a record."""
        return cls(
            stem=record.stem, plan=record.plan, size=record.size, sha256=record.sha256, shape=record.shape,
            moments=record.moments, rounding=record.rounding, layout=record.layout,
            count=record.count, num_images=record.num_images, numbers=record.numbers,
        )  # fmt: skip


def read_summary(store: Store, *, stem: str, plan_digest: str) -> ShardSummary | None:
    """Return what `read_record` returns but for the rows, which aren't parsed; its digest is compared all the same.

    The record of an earlier version, which has no summary, is read as a whole.
    """
    try:
        content = store.read(f"{stem}.json")
        start, end = content.find(_ROWS), content.rfind(_BEHIND_ROWS)
        values = json.loads(content[: start + len(_ROWS)] + content[end:]) if start > 0 else {}
        if "summary" in values and is_sealed(content, values.pop(SEAL)):
            values |= values.pop("summary")
            del values["rows"]
            values["moments"] = ChannelMoments(**values["moments"])
            values["rounding"] = {name: Rounding(**value) for name, value in values["rounding"].items()}
            summary = ShardSummary(**values)
            return summary if is_record_of(summary, store, stem=stem, plan_digest=plan_digest) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        pass  # it is read once more, in the way that tells damage from the rest
    record = read_record(store, stem=stem, plan_digest=plan_digest)
    return None if record is None else ShardSummary.of(record)
