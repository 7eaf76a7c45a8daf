"""Activations of a whole image as strips of rows, each in memory or on a slower tier until it is read."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of Linux

Tier = Literal["device", "host", "disk"]
"""Where a map lives: on the network's device, in (page-locked) host memory, or in a temporary file."""


class Kept(Protocol):
    """Rows that can be read as often as needed; rows are [h, W, C], as a channels_last strip lies in memory."""

    def read(self, start: int, stop: int, *, into: Tensor) -> None:
        """Copy rows [start, stop) into a tensor on the network's device."""


@dataclass(frozen=True)
class OnDevice:
    """Rows where the network computes."""

    rows: Tensor

    def read(self, start: int, stop: int, *, into: Tensor) -> None:
        """On the device."""
        into.copy_(self.rows[start:stop])


class OnHost:
    """Rows in page-locked host memory."""

    def __init__(self, rows: Tensor):
        self.rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=rows.device.type == "cuda")
        self.rows.copy_(rows)

    def read(self, start: int, stop: int, *, into: Tensor) -> None:
        """A transfer, ordered on the device's current stream."""
        into.copy_(self.rows[start:stop], non_blocking=True)


class Spill:
    """A temporary file without a name, whose space is given back when it is closed.

    Raises:
        OSError: The disk is full.
    """

    def __init__(self, folder: str | None):
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed with the map)
        self.end = 0

    def append(self, rows: Tensor) -> int:
        """Write a tensor of the CPU, and return its offset."""
        offset, content = self.end, _bytes(rows)
        while content:
            self.end += (written := os.pwrite(self.file.fileno(), content, self.end))
            content = content[written:]
        return offset

    def free(self, offset: int, length: int) -> None:
        """Give back the space of bytes that aren't read again; where it can't be, it goes with the file."""
        if sys.platform == "linux":
            of_64_bits = [ctypes.c_int64(value) for value in (offset, length)]
            ctypes.CDLL(None).fallocate(self.file.fileno(), _PUNCH_HOLE, *of_64_bits)

    def read(self, offset: int, *, into: Tensor) -> None:
        """Fill a tensor of the CPU."""
        content = _bytes(into)
        while content:
            offset += (count := os.preadv(self.file.fileno(), [content], offset))
            content = content[count:]


class OnDisk:
    """Rows in a temporary file."""

    def __init__(self, rows: Tensor, spill: Spill):
        self.spill = spill
        self.row_bytes = rows[0].numel() * rows.element_size()
        self.length = len(rows) * self.row_bytes
        self.offset = spill.append(rows.cpu())

    def free(self) -> None:
        """Give the space back."""
        self.spill.free(self.offset, self.length)

    def read(self, start: int, stop: int, *, into: Tensor) -> None:
        """Straight into the tensor, where that is the CPU's."""
        here = into if into.device.type == "cpu" else torch.empty_like(into, device="cpu")
        self.spill.read(self.offset + start * self.row_bytes, into=here)
        if here is not into:
            into.copy_(here)


def _bytes(rows: Tensor) -> memoryview:
    return rows.view(torch.uint8).numpy().data.cast("B")


def rows_of(strip: Tensor) -> Tensor:
    """[1, C, h, W] as [h, W, C], contiguous: a view of a channels_last strip."""
    return strip.permute(0, 2, 3, 1)[0].contiguous()


def strip_of(rows: Tensor) -> Tensor:
    """[h, W, C] as [1, C, h, W], channels_last."""
    return rows[None].permute(0, 3, 1, 2)


class RowMap:
    """The rows of one activation that this process holds, written from top to bottom and let go in the same order.

    Args:
        channels, height, width: Of the whole map.
        like: A tensor of the map's type, on the network's device.
        start: The first row that this process holds.
        tier: Where strips are kept.
        folder: Of temporary files, for the tier `disk`; None: the system's.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        start: int = 0,
        tier: Tier = "device",
        folder: str | None = None,
    ):
        self.channels, self.height, self.width = shape
        self.dtype, self.device, self.tier = dtype, device, tier
        self.start = self.stop = start
        self.strips: deque[tuple[int, int, Kept]] = deque()  # first row, row after the last, content
        self.spill = Spill(folder) if tier == "disk" else None

    def write(self, strip: Tensor) -> None:
        """Append rows [1, C, h, W]."""
        rows = rows_of(strip)
        assert rows.dtype == self.dtype
        kept: Kept
        if self.spill is not None:
            kept = OnDisk(rows, self.spill)
        else:
            kept = OnHost(rows) if self.tier == "host" else OnDevice(rows)
        self.strips.append((self.stop, self.stop + len(rows), kept))
        self.stop += len(rows)

    def put_halo(self, *, above: Tensor | None, below: Tensor | None) -> None:
        """Have neighbours' rows [h, W, C] above the first and below the last row held, in place of earlier ones."""
        self.strips = deque(strip for strip in self.strips if self.start <= strip[0] < self.stop)
        if above is not None:
            self.strips.appendleft((self.start - len(above), self.start, OnDevice(above)))
        if below is not None:
            self.strips.append((self.stop, self.stop + len(below), OnDevice(below)))

    def empty(self, rows: int) -> Tensor:
        """So many rows [h, W, C] to be filled."""
        return torch.empty((rows, self.width, self.channels), dtype=self.dtype, device=self.device)

    def read(self, start: int, stop: int) -> Tensor:
        """Return the rows [start, stop), all of which must be here.

        Returns:
            [1, C, stop - start, W] on the device, channels_last. It may be a view, so it is not to be changed.
        """
        touched = [piece for piece in self.strips if piece[0] < stop and piece[1] > start]
        assert touched, "rows that were let go, or not yet written"
        first, last, kept = touched[0]
        if len(touched) == 1 and isinstance(kept, OnDevice):
            assert first <= start <= stop <= last, "rows that were let go, or not yet written"
            return strip_of(kept.rows[start - first : stop - first])
        rows, filled = self.empty(stop - start), 0
        for first, last, kept in touched:
            begin, end = max(start, first), min(stop, last)
            kept.read(begin - first, end - first, into=rows[begin - start : end - start])
            filled += end - begin
        assert filled == stop - start, "rows that were let go, or not yet written"
        return strip_of(rows)

    def let_go(self, before: int) -> None:
        """Free the strips that end at or before a row."""
        while self.strips and self.strips[0][1] <= before:
            _, _, kept = self.strips.popleft()
            if isinstance(kept, OnDisk):
                kept.free()
