"""The files of an encoded collection: shards, the record beside each, and the index made from the records.

    plan.json                    what the output is: the VAE, the preprocessing, the numbering; written first
    latents-00000.safetensors    the rows of one shard
    latents-00000.json           its record: size, digest, source of each row, what was skipped; makes the shard whole
    index.json                   written when every shard is whole, with samples.jsonl and skipped.jsonl

Every file is whole or absent, and its bytes are a function of the sources and the plan alone: not of the time, nor of
which process wrote it, nor of how many there were. So a shard that two processes write is written the same twice.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_vae.latents.statistics import ChannelMoments, Rounding
from ldm_vae.system.files import sha256_file, whole_or_absent, write_tensors, write_whole

FORMAT = "ldm-vae latents"
VERSION = 1
NO_LABEL = -1
PLAN, INDEX, SAMPLES, SKIPPED = "plan.json", "index.json", "samples.jsonl", "skipped.jsonl"
HEADERS = "headers.jsonl"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an output is. Outputs with equal plans hold equal latents for equal sources."""

    vae: dict[str, Any]
    """Fingerprints of the VAE and its scaling: scaling_factor, shift_factor, latents_mean, latents_std."""
    preprocessing: dict[str, Any]
    """How an image becomes the encoder's input, and the precision of the encoder."""
    mode: str
    """moments, mean or sample."""
    dtype: str
    """Type of the stored latents."""
    flip: bool
    """Whether the mirrored images are stored too."""
    seed: int | None
    """Seed of the posterior samples; none where nothing is random."""
    shard_size: int
    """Sample i is in shard i // shard_size."""
    data: dict[str, Any]
    """The collection: its number of images, a digest of their names, and what is compared to find changed sources."""

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @functools.cached_property
    def digest(self) -> str:
        return plan_digest(self.to_json())


def plan_digest(plan: dict[str, Any]) -> str:
    """Digest of a plan in JSON."""
    return hashlib.sha256(dump_json(plan)).hexdigest()


def differences(there: dict[str, Any], here: dict[str, Any], *, prefix: str = "") -> list[str]:
    """Name what differs between two plans, one `field: X there, Y here` each."""
    found = []
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, prefix=f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {_short(old)} there, {_short(new)} here")
    return found


@dataclass(kw_only=True)
class Row:
    """One image: a row of its shard, or skipped."""

    sample: int
    """Number in the output."""
    image: int
    """Number in the collection; another one where images are numbered by buckets."""
    source: str
    """Name of the image: a path within the collection's folder, or a data set's own name."""
    stamp: list[int] | str | None = None
    """[size, mtime in ns] of the source or its SHA-256 when it was read; none where the source is no file."""
    reason: str | None = None
    """Why it was skipped; none: it has a row."""
    size: list[int] | None = None
    """Its [width, height], upright; none where it could not be read."""
    label: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    """The other columns of the collection: captions and so on."""


@dataclass(kw_only=True)
class ShardRecord:
    """What is known of a whole shard; the only proof that it is one."""

    stem: str
    plan: str
    """Digest of the plan."""
    size: int
    """Bytes of the shard's file."""
    sha256: str
    shape: list[int]
    """[c, h, w] of a latent."""
    rows: list[Row]
    """Every image of the shard in order of its number, the skipped ones too."""
    moments: ChannelMoments
    rounding: dict[str, Rounding]
    """Of each tensor."""

    @property
    def count(self) -> int:
        """Rows in the shard's tensors."""
        return sum(row.reason is None for row in self.rows)

    def to_bytes(self) -> bytes:
        return dump_json(asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> ShardRecord:
        """Raises ValueError, KeyError or TypeError for anything but a record."""
        values = json.loads(content)
        values["rows"] = [Row(**row) for row in values["rows"]]
        values["moments"] = ChannelMoments(**values["moments"])
        values["rounding"] = {name: Rounding(**value) for name, value in values["rounding"].items()}
        return cls(**values)


def shard_stem(shard: int) -> str:
    """Name of a shard's files, without suffix."""
    return f"latents-{shard:05d}"


def write_shard(
    folder: Path,
    *,
    stem: str,
    plan: Plan,
    tensors: dict[str, Tensor],
    rows: list[Row],
    moments: ChannelMoments,
    rounding: dict[str, Rounding],
    shape: tuple[int, int, int],
) -> ShardRecord:
    """Write a shard, then the record that makes it whole.

    Args:
        tensors: `mean` and `std`, or `latents`, [n, c, h, w], and what goes with them, [n, ...].
        rows: every image of the shard; the n without a reason are the tensors' rows, in order.
    """
    path, record_path = folder / f"{stem}.safetensors", folder / f"{stem}.json"
    # A single key: safetensors writes several in no fixed order.
    metadata = {"ldm_vae": json.dumps({"format": FORMAT, "plan": plan.digest, "stem": stem}, sort_keys=True)}
    with whole_or_absent(path) as temporary:
        write_tensors(temporary, tensors, metadata=metadata)
        size, sha256 = temporary.stat().st_size, sha256_file(temporary)
        record = ShardRecord(
            stem=stem, plan=plan.digest, size=size, sha256=sha256, shape=list(shape), rows=rows,
            moments=moments, rounding=rounding,
        )  # fmt: skip
        if record_path.exists() and record_path.read_bytes() != record.to_bytes():
            record_path.unlink()  # it must never stand beside another shard than its own
    write_whole(record_path, record.to_bytes())
    return record


def read_record(folder: Path, *, stem: str, plan_digest: str) -> ShardRecord | None:
    """Return the record of a shard if the shard is whole and of this plan, else none."""
    try:
        record = ShardRecord.from_bytes((folder / f"{stem}.json").read_bytes())
        size = (folder / f"{stem}.safetensors").stat().st_size
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if record.plan == plan_digest and record.size == size and record.stem == stem else None


@dataclass(kw_only=True)
class Assembled:
    """What an index counts."""

    num_rows: int
    num_skipped: int
    num_bytes: int


def assembled_index(folder: Path, *, plan: Plan) -> Assembled | None:
    """Return what the index of an output counts; none where it isn't there with the lists that go with it."""
    if not all((folder / name).exists() for name in (INDEX, SAMPLES, SKIPPED)):
        return None
    index = json.loads((folder / INDEX).read_bytes())
    if {key: index.get(key) for key in plan.to_json()} != plan.to_json():
        return None
    num_bytes = sum(shard["size"] for shard in index["shards"])
    return Assembled(num_rows=index["num_rows"], num_skipped=index["num_skipped"], num_bytes=num_bytes)


def assemble_index(folder: Path, *, plan: Plan, stems: Iterable[str]) -> Assembled:
    """Write samples.jsonl, skipped.jsonl and, last, index.json, from the records of whole shards, in order.

    Raises:
        FileNotFoundError: a shard is not whole.
    """
    totals = _Totals()
    with whole_or_absent(folder / SAMPLES) as samples_path, whole_or_absent(folder / SKIPPED) as skipped_path:
        with open(samples_path, "wb") as samples, open(skipped_path, "wb") as skipped:
            for stem in stems:
                record = read_record(folder, stem=stem, plan_digest=plan.digest)
                if record is None:
                    raise FileNotFoundError(f"{folder / stem}.safetensors is missing or not whole")
                for line in totals.sample_lines(record):
                    samples.write(dump_json(line))
                for row in record.rows:
                    if row.reason is not None:
                        skipped.write(dump_json(_skipped_line(row)))
                totals.add(record)
        digests = {SAMPLES: sha256_file(samples_path), SKIPPED: sha256_file(skipped_path)}
    write_whole(folder / INDEX, json.dumps(totals.index(plan, digests=digests), indent=1).encode() + b"\n")
    return Assembled(num_rows=totals.num_rows, num_skipped=totals.num_skipped, num_bytes=totals.num_bytes)


def _where(row: Row) -> dict[str, Any]:
    other_number = {"image": row.image} if row.image != row.sample else {}
    return {"sample": row.sample, **other_number, "source": row.source}


def _skipped_line(row: Row) -> dict[str, Any]:
    return {**_where(row), "reason": row.reason}


class _Totals:
    """Sums over the records, in the order of the shards."""

    def __init__(self) -> None:
        self.num_rows = self.num_skipped = self.num_bytes = 0
        self.shards: list[dict[str, Any]] = []
        self.moments = ChannelMoments()
        self.rounding: dict[str, Rounding] = {}

    def sample_lines(self, record: ShardRecord) -> Iterator[dict[str, Any]]:
        number = self.num_rows
        for row in record.rows:
            if row.reason is None:
                line: dict[str, Any] = {"row": number, **_where(row), "shard": f"{record.stem}.safetensors"}
                line |= {"size": row.size} if row.size is not None else {}
                line |= {"label": row.label} if row.label is not None else {}
                yield line | ({"columns": row.columns} if row.columns else {})
                number += 1

    def add(self, record: ShardRecord) -> None:
        self.num_rows += record.count
        self.num_skipped += len(record.rows) - record.count
        self.num_bytes += record.size
        entry = {"file": f"{record.stem}.safetensors", "count": record.count, "shape": record.shape}
        self.shards.append(entry | {"size": record.size, "sha256": record.sha256})
        self.moments = self.moments.merge(record.moments)
        for name, rounding in record.rounding.items():
            self.rounding[name] = self.rounding.get(name, Rounding()).merge(rounding)

    def index(self, plan: Plan, *, digests: dict[str, str]) -> dict[str, Any]:
        return {
            **plan.to_json(),
            "num_rows": self.num_rows,
            "num_skipped": self.num_skipped,
            "files": digests,
            "stats": self.moments.statistics(),
            "rounding_error": {name: rounding.summary() for name, rounding in sorted(self.rounding.items())},
            "shards": self.shards,
        }


def dump_json(value: Any) -> bytes:
    """One line of JSON in UTF-8. Bytes become base64, and what JSON doesn't know becomes text."""
    options: dict[str, Any] = {"separators": (",", ":"), "default": _jsonable}
    try:
        return json.dumps(value, ensure_ascii=False, **options).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that isn't UTF-8: escaped, and read back as the same name
        return json.dumps(value, **options).encode() + b"\n"


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:36]}…"
