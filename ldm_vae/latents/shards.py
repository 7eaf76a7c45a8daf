"""The files of an encoded collection: shards, the record beside each, and the index made from the records.

    plan.json                    what the output is: the VAE, the preprocessing, the numbering; written first
    latents-00000.safetensors    the rows of one shard
    latents-00000.json           its record: size, digest, source of each row, what was skipped; makes the shard whole
    codebook.npy                 the codes, where numbers of codes are stored
    index.json                   written when every shard is whole, with samples.jsonl and skipped.jsonl
    shards.npy                   instead of these lists, and of index.json's own, where there are 10,000 shards or more

Every file is whole or absent. The JSON files hold a digest of themselves, the index those of the shards and the lists,
and each row of a shard has a checksum in it. No file depends on the time, on which process wrote it, or on how many
there were; where the encoder gives equal latents, which devices and batch sizes need not, files are equal to the bit.
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_vae.latents.sealed import digest_json, read_sealed, seal
from ldm_vae.latents.statistics import ChannelMoments, Rounding
from ldm_vae.system.store import Store

FORMAT = "ldm-vae latents"
VERSION = 1
NO_LABEL = -1
PLAN, INDEX, SAMPLES, SKIPPED = "plan.json", "index.json", "samples.jsonl", "skipped.jsonl"
HEADERS = "headers.jsonl"
CODEBOOK = "codebook.npy"
SHARDS = "shards.npy"
CHECKSUMS = "crc32"
"""Name of the tensor with the rows' checksums."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an output is. Outputs with equal plans hold equal latents for equal sources."""

    vae: dict[str, Any]
    """Fingerprints of the VAE and its scaling: scaling_factor, shift_factor, latents_mean, latents_std."""
    preprocessing: dict[str, Any]
    """How an image becomes the encoder's input, and the precision of the encoder."""
    mode: str
    """moments, mean, sample or indices."""
    dtype: str
    """Type of the stored latents."""
    flip: bool
    """Whether the mirrored images are stored too."""
    seed: int | None
    """Seed of the posterior samples; None where nothing is random."""
    shard_size: int
    """Sample i is in shard i // shard_size."""
    data: dict[str, Any]
    """The collection: its number of images, a digest of their names, and what is compared to find changed sources."""
    layout: dict[str, Any] | None = None
    """The `name` of another trainer's layout that the shards are in, and what it makes of the `columns`."""

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plan.json and, at its beginning, index.json hold it."""
        return {"format": FORMAT, "version": VERSION, **_without_none(asdict(self), "layout")}

    @functools.cached_property
    def digest(self) -> str:
        """Digest that shards and records name their plan by."""
        return digest_json(self.to_json())


PLAN_FIELDS = ("format", "version", *Plan.__dataclass_fields__)


def differences(there: dict[str, Any], here: dict[str, Any], *, prefix: str = "") -> list[str]:
    """Name what differs between two plans, one `field: X there, Y here` each."""
    lines = []
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, prefix=f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {_short(old)} there, {_short(new)} here")
    return lines


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
    """[size, mtime in ns] of the source or its SHA-256 when it was read; None where the source is no file."""
    reason: str | None = None
    """Why it was skipped; None where it has a row."""
    size: list[int] | None = None
    """Its [width, height], upright; None where it could not be read."""
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
    """[c, h, w] of a row's tensors; [1, h, w] for numbers of codes."""
    rows: list[Row]
    """Every image of the shard in order of its number, the skipped ones too."""
    moments: ChannelMoments
    rounding: dict[str, Rounding]
    """What was rounded off each tensor."""
    layout: dict[str, Any] | None = None
    """What the shard's layout, where it isn't this format's own, has to know of it."""

    @property
    def count(self) -> int:
        """Rows in the shard's tensors."""
        return sum(row.reason is None for row in self.rows)

    @property
    def num_images(self) -> int:
        """Images of the shard, the skipped ones too."""
        return len(self.rows)

    @property
    def numbers(self) -> str:
        """Digest of the images' numbers."""
        return numbers_digest((row.sample, row.image) for row in self.rows)

    def to_bytes(self) -> bytes:
        """Return the content of the record's file, with a summary of the rows before them."""
        summary = {"count": self.count, "num_images": self.num_images, "numbers": self.numbers}
        return seal({"summary": summary, **_without_none(asdict(self), "layout")})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ShardRecord:
        """Make a record of what its file holds.

        Raises:
            ValueError, KeyError, TypeError or AttributeError: It is no record.
        """
        values = {name: value for name, value in values.items() if name != "summary"}
        values["rows"] = [Row(**row) for row in values["rows"]]
        values["moments"] = ChannelMoments(**values["moments"])
        values["rounding"] = {name: Rounding(**value) for name, value in values["rounding"].items()}
        return cls(**values)


def numbers_digest(numbers: Iterable[tuple[int, int]]) -> str:
    """Return the SHA-256 of a shard's images, each by its numbers in the output and in the collection."""
    return digest_json([list(pair) for pair in numbers])


def shard_stem(shard: int) -> str:
    """Return the name of a shard's files, without suffix."""
    return f"latents-{shard:05d}"


def tensor_names(*, mode: str, flip: bool) -> list[str]:
    """Return the names of a shard's latents."""
    names = {"moments": ["mean", "std"], "indices": ["indices"]}.get(mode, ["latents"])
    return names + [f"{name}_flip" for name in names if flip]


def row_checksums(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the CRC-32 of each row, [n], int64, over all tensors [n, ...] in the order of their names."""
    columns = [
        tensor.reshape(len(tensor), math.prod(tensor.shape[1:])).contiguous().view(torch.uint8).numpy()
        for name, tensor in sorted(tensors.items())
        if name != CHECKSUMS
    ]
    checksums = [0] * len(columns[0])
    for column in columns:
        checksums = [zlib.crc32(row, checksum) for row, checksum in zip(column, checksums, strict=True)]
    return torch.tensor(checksums, dtype=torch.int64)


def read_record(store: Store, *, stem: str, plan_digest: str) -> ShardRecord | None:
    """Return the record of a shard, or None.

    The record must be whole and of this plan, and the shard's file must have the size that the record tells; the
    file's bytes are not read.
    """
    try:
        values = read_sealed(store, f"{stem}.json")
        record = None if values is None else ShardRecord.from_json(values)
        is_whole = record is not None and is_record_of(record, store, stem=stem, plan_digest=plan_digest)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if is_whole else None


class _Told(Protocol):
    stem: str
    plan: str
    size: int


def is_record_of(record: _Told, store: Store, *, stem: str, plan_digest: str) -> bool:
    """Whether a record is that of a shard of the plan, whose file has the size that it tells.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return (record.plan, record.stem) == (plan_digest, stem) and record.size == store.size(f"{stem}.safetensors")


def _without_none(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Leave a field out where it says nothing, as in all files from before there was such a field."""
    return values if values[name] is not None else {key: value for key, value in values.items() if key != name}


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:36]}…"
