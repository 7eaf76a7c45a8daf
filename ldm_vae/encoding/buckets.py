"""Which images are in which shard: in the collection's order, or bucket by bucket of like aspect ratios."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.headers import picture_sizes
from ldm_vae.images.transforms import Box, Size
from ldm_vae.latents.sealed import dump_json
from ldm_vae.latents.shards import HEADERS, shard_stem
from ldm_vae.system.leases import Leases
from ldm_vae.system.store import Store

_LEASE = "headers"
_POLL_SECONDS = 0.5


class ImageKey(NamedTuple):
    """One image of a shard."""

    sample: int
    """Its number in the output."""
    image: int
    """Its number in the collection; another one where images are numbered by buckets."""
    size: Size
    """What it is resized and cropped to."""


@dataclass(frozen=True, kw_only=True)
class ShardImages:
    """The images of one shard, in order; all get the same size."""

    stem: str
    size: Size
    keys: list[ImageKey]


def repeated(count: int, *, times: int) -> Sequence[int]:
    """Return the numbers 0 … count - 1, each so many times in a row, without a list of them."""
    return range(count) if times == 1 else _Repeated(range(count * times), times)


@dataclass(frozen=True)
class _Repeated(Sequence[int]):
    places: range
    times: int

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: Any) -> Any:
        found = self.places[at]
        return _Repeated(found, self.times) if isinstance(found, range) else found // self.times


class Numbering:
    """The images' numbers: sample i is in shard i // shard_size, and each group of images begins a new shard.

    Args:
        groups: For each size the images that get it, by their numbers in the collection.
        shard_size: Images a shard.
    """

    def __init__(self, groups: Sequence[tuple[Size, Sequence[int]]], *, shard_size: int) -> None:
        self._shard_size = shard_size
        self._shards: dict[str, tuple[int, Size, Sequence[int]]] = {}
        for size, images in groups:
            for start in range(0, len(images), shard_size):
                number = len(self._shards)
                self._shards[shard_stem(number)] = (number, size, images[start : start + shard_size])

    @property
    def stems(self) -> list[str]:
        """Names of all shards, in order, without suffix."""
        return list(self._shards)

    def shard(self, stem: str) -> ShardImages:
        """Return what belongs in a shard."""
        number, size, images = self._shards[stem]
        first = number * self._shard_size
        keys = [ImageKey(sample=first + i, image=image, size=size) for i, image in enumerate(images)]
        return ShardImages(stem=stem, size=size, keys=keys)


def bucket_sizes(resolution: int, *, step: int, max_aspect: float) -> list[Size]:
    """Return the sizes of the buckets, sorted.

    Sides are multiples of `step`; no size has more pixels than a square of `resolution` or is longer than `max_aspect`
    times its short side; and for each width there is the largest height that this allows.
    """
    sizes = set()
    for width in range(step, resolution * resolution // step + 1, step):
        height = resolution * resolution // width // step * step
        if height and max(width, height) <= max_aspect * min(width, height):
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def bucket_groups(
    headers: Sequence[Size | None], *, choose: Callable[[Size], Size], default: Size
) -> list[tuple[Size, Sequence[int]]]:
    """Put each image in its bucket, those with unreadable headers in the default; buckets are sorted by size.

    Args:
        headers: Size of each image, None where it can't be read.
        choose: Returns the bucket of an image's size.
        default: The bucket of images without a size.
    """
    choose = functools.cache(choose)
    groups: dict[Size, list[int]] = {}
    for image, size in enumerate(headers):
        groups.setdefault(default if size is None else choose(size), []).append(image)
    return [(size, groups[size]) for size in sorted(groups)]


def covering_box(picture: Size, *, size: Size) -> Box:
    """Return the largest part of a picture, about its middle, that has the aspect ratio of `size`."""
    width, height = picture
    scale = min(width / size[0], height / size[1])
    left, top = (width - size[0] * scale) / 2, (height - size[1] * scale) / 2
    return max(left, 0.0), max(top, 0.0), min(width - left, float(width)), min(height - top, float(height))


def read_headers(
    store: Store,
    collection: ImageCollection,
    *,
    channels: int,
    leases: Leases,
    num_workers: int,
    timeout_seconds: float,
) -> list[Size | None]:
    """Return every image's size, none where the header can't be read.

    The sizes are kept in the output with the size and time of change of each source, so that one process reads the
    headers, once, and again only those of sources that changed.
    """
    stamps = [collection.source_stat(i) for i in range(len(collection))]
    while True:
        known = _read_known(store)
        stale = [i for i, stamp in enumerate(stamps) if i >= len(known) or known[i]["stamp"] != _listed(stamp)]
        if not stale:
            return [None if entry["size"] is None else (entry["size"][0], entry["size"][1]) for entry in known]
        if not leases.claim(_LEASE):
            time.sleep(_POLL_SECONDS)
            continue
        entries = dict(enumerate(known))
        sizes = picture_sizes(
            collection, stale, channels=channels, num_workers=num_workers, timeout_seconds=timeout_seconds
        )
        for i, size in zip(stale, sizes, strict=True):
            entries[i] = {"size": _listed(size), "stamp": _listed(stamps[i])}
        _write_known(store, [entries[i] for i in range(len(collection))])
        leases.release(_LEASE)


def _write_known(store: Store, entries: list[dict[str, Any]]) -> None:
    """Write a line a header, and their digest as the last."""
    lines = b"".join(dump_json(entry) for entry in entries)
    store.write_whole(HEADERS, lines + dump_json(hashlib.sha256(lines).hexdigest()))


def _read_known(store: Store) -> list[dict[str, Any]]:
    """Return what `_write_known` wrote; nothing where that is damaged, so that all headers are read again."""
    content = store.read(HEADERS) if store.exists(HEADERS) else b""
    lines, _, end = content.rstrip(b"\n").rpartition(b"\n")
    if dump_json(hashlib.sha256(lines + b"\n").hexdigest()).rstrip() != end:
        return []
    return [json.loads(line) for line in lines.splitlines()]


def _listed(pair: tuple[int, int] | None) -> list[int] | None:
    return None if pair is None else list(pair)
