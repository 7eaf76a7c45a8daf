"""Training images of several shapes: which shape an update has, and which images it is made of."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm_vae.images.transforms import Size
from ldm_vae.system.randomness import sample_rng

_CHUNK = 1 << 16  # updates whose shapes are drawn at once


def nearest_bucket(picture: Size, *, sizes: Sequence[Size]) -> Size:
    """Return the first of the sizes whose aspect ratio is nearest to a picture's, by their quotient."""
    aspect = math.log(picture[0] / picture[1])
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))


@dataclass(kw_only=True)
class _Chunk:
    """What was drawn for a row of updates."""

    number: int
    chosen: np.ndarray
    """Number of each update's bucket."""
    before: np.ndarray
    """How many earlier updates of the run had the same one."""


class Buckets:
    """The shapes of a run's images.

    All images of an update have one shape, which is a function of (seed, number of the update): it is drawn with the
    bucket's part of the images for its probability. A bucket's images follow each other in an endless row of
    permutations, as a whole collection's do, and each update takes the next `batch_size` of its bucket.

    Args:
        sizes: (width, height) of each bucket's images.
        members: The images of each bucket, by their numbers in the collection; None: one bucket has them all.
        seed: Seed of the run.
        batch_size: Images an update: the k-th image belongs to update k // batch_size.
    """

    def __init__(
        self, sizes: Sequence[Size], *, members: Sequence[np.ndarray] | None, seed: int, batch_size: int
    ) -> None:
        assert members is not None or len(sizes) == 1
        self.sizes = tuple(sizes)
        self._members, self._seed, self._batch_size = members, seed, batch_size
        self._ends = np.cumsum([1] if members is None else [len(images) for images in members])
        self._totals = [np.zeros(len(sizes), dtype=np.int64)]
        """How many updates before each chunk had each bucket."""
        self._last: _Chunk | None = None

    def size_of(self, k: int) -> Size:
        """Return (width, height) of the k-th image."""
        return self.sizes[self._bucket(k // self._batch_size)[0]]

    def due(self, k: int) -> tuple[Sequence[int] | np.ndarray, int] | None:
        """Return the k-th image's bucket, and its place in the bucket's endless row; None: the bucket has all images.

        The bucket is given by its images' numbers in the collection.
        """
        if self._members is None:
            return None
        update, place = divmod(k, self._batch_size)
        bucket, before = self._bucket(update)
        return self._members[bucket], before * self._batch_size + place

    def digest(self) -> str:
        """Return a digest of which images are in which bucket, in hexadecimal."""
        digest = hashlib.sha256(repr(self.sizes).encode())
        for images in self._members or ():
            digest.update(np.ascontiguousarray(images, dtype="<i8").tobytes() + b"/")
        return digest.hexdigest()

    def _bucket(self, update: int) -> tuple[int, int]:
        """Return an update's bucket, and how many updates before had the same one."""
        if len(self.sizes) == 1:
            return 0, update
        number, place = divmod(update, _CHUNK)
        if self._last is None or self._last.number != number:
            self._last = self._chunk(number)
        return int(self._last.chosen[place]), int(self._last.before[place])

    def _chunk(self, number: int) -> _Chunk:
        while len(self._totals) <= number:
            counts = np.bincount(self._drawn(len(self._totals) - 1), minlength=len(self.sizes))
            self._totals.append(self._totals[-1] + counts)
        chosen = self._drawn(number)
        before = np.empty(_CHUNK, dtype=np.int64)
        for bucket in range(len(self.sizes)):
            mine = chosen == bucket
            before[mine] = self._totals[number][bucket] + np.arange(mine.sum())
        return _Chunk(number=number, chosen=chosen, before=before)

    def _drawn(self, number: int) -> np.ndarray:
        draws = sample_rng(number, seed=self._seed, stream="bucket").integers(self._ends[-1], size=_CHUNK)
        return np.searchsorted(self._ends, draws, side="right")
