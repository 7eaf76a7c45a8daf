"""The shards of an output: a list in index.json or, where they are many, an array beside it."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ldm_vae.latents.shards import SHARDS
from ldm_vae.system.store import Store

MANY_SHARDS = 10_000
"""From so many shards on neither index.json nor the lists beside it grow with the rows: the shards are an array, and
what is known of a row stands in its shard's record alone."""
_ENTRY = np.dtype(
    [
        ("file", "<i8"),
        ("part", "<i8"),
        ("count", "<i8"),
        ("shape", "<i4", (3,)),
        ("size", "<i8"),
        ("sha256", "u1", (32,)),
    ]
)
_STEM = re.compile(r"latents-(\d+)(?:-(\d+))?")


class ShardTable:
    """What an index says of each shard, in order: `file`, `count` of rows, `shape` of a latent, `size` and `sha256`.

    Args:
        entries: The list of index.json, or the array of shards.npy.
    """

    def __init__(self, entries: list[dict[str, Any]] | np.ndarray) -> None:
        self._entries = entries
        counts = entries["count"] if isinstance(entries, np.ndarray) else [entry["count"] for entry in entries]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        """Number of the first row of each shard, and last the number of rows."""

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, shard: int) -> dict[str, Any]:
        entry = self._entries[shard]
        return entry if isinstance(entry, dict) else _told(entry)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[shard] for shard in range(len(self)))

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        if isinstance(self._entries, np.ndarray):
            return int(self._entries["size"].sum())
        return sum(entry["size"] for entry in self._entries)

    def shapes(self) -> set[tuple[int, ...]]:
        """Return the shapes [c, h, w] of the latents that there are."""
        if isinstance(self._entries, np.ndarray):
            shapes = np.unique(self._entries["shape"][self._entries["count"] > 0], axis=0)
            return {tuple(shape) for shape in shapes.tolist()}
        return {tuple(entry["shape"]) for entry in self._entries if entry["count"]}

    @classmethod
    def of(cls, index: dict[str, Any], store: Store) -> ShardTable:
        """Return the shards of an index, which `read_index` has read from the store.

        Raises:
            ValueError: The array is missing, or isn't the one that the index tells.
        """
        if isinstance(index["shards"], list):
            return cls(index["shards"])
        try:
            entries = _read(store, sha256=index["files"][SHARDS])
            if len(entries) != index["shards"]["count"] or entries["count"].sum() != index["num_rows"]:
                raise ValueError("another number of shards or rows")
        except FileNotFoundError:
            raise ValueError(f"{store.place(SHARDS)} is missing; start the same encode again, it writes it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{store.place(SHARDS)} is not the index's ({error}); start the same encode again, it writes it anew"
            ) from None
        return cls(entries)


class ShardEntries:
    """Takes the shards of an index, one after the other."""

    def __init__(self, num_shards: int) -> None:
        self.array = np.zeros(num_shards, dtype=_ENTRY)
        self._filled = 0

    def add(self, *, stem: str, count: int, shape: list[int], size: int, sha256: str) -> None:
        """Take the next shard."""
        match = _STEM.fullmatch(stem)
        assert match is not None, stem
        part = -1 if match[2] is None else int(match[2])
        digest = np.frombuffer(bytes.fromhex(sha256), np.uint8)
        self.array[self._filled] = (int(match[1]), part, count, shape, size, digest)
        self._filled += 1

    @property
    def are_many(self) -> bool:
        """Whether they go into an array of their own."""
        return len(self.array) >= MANY_SHARDS

    def for_index(self) -> list[dict[str, Any]] | dict[str, Any]:
        """Return what index.json says of them."""
        assert self._filled == len(self.array)
        return {"file": SHARDS, "count": len(self.array)} if self.are_many else [_told(entry) for entry in self.array]

    def to_bytes(self) -> bytes:
        """Return the content of shards.npy."""
        content = io.BytesIO()
        np.save(content, self.array, allow_pickle=False)
        return content.getvalue()


def _told(entry: np.void) -> dict[str, Any]:
    part = "" if entry["part"] < 0 else f"-{int(entry['part']):05d}"
    return {
        "file": f"latents-{int(entry['file']):05d}{part}.safetensors",
        "count": int(entry["count"]),
        "shape": entry["shape"].tolist(),
        "size": int(entry["size"]),
        "sha256": entry["sha256"].tobytes().hex(),
    }


def _read(store: Store, *, sha256: str) -> np.ndarray:
    if store.folder is not None:
        if store.sha256(SHARDS) != sha256:
            raise ValueError("its digest is another")
        entries = np.load(store.place(SHARDS), mmap_mode="r", allow_pickle=False)
    else:
        content = store.read(SHARDS)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its digest is another")
        entries = np.load(io.BytesIO(content), allow_pickle=False)
    if entries.dtype != _ENTRY or entries.ndim != 1:
        raise ValueError("an array of another kind")
    return entries
