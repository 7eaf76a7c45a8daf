"""Pictures of any number of channels, whose values keep the precision of their files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

_SUPPORT = 2  # of a bicubic filter, in pixels of the smaller picture


@dataclass(frozen=True, eq=False)
class Bands:
    """A picture as an array; it has what is used of Pillow's pictures, under the same names."""

    values: np.ndarray  # [H, W, C], float32 in [-1, 1]

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return int(self.values.shape[1])

    @property
    def height(self) -> int:
        """Number of rows."""
        return int(self.values.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    def crop(self, box: tuple[int, int, int, int]) -> Bands:
        """Return the pixels of a box inside the picture."""
        left, top, right, bottom = box
        return Bands(self.values[top:bottom, left:right])

    def mirrored(self) -> Bands:
        """Return the picture with left and right exchanged."""
        return Bands(self.values[:, ::-1])

    def resized(self, size: tuple[int, int], box: tuple[float, float, float, float]) -> Bands:
        """Return a part of the picture at a size, bicubic and antialiased as Pillow does it; overshoot is clipped."""
        bands = [
            np.asarray(Image.fromarray(np.ascontiguousarray(band)).resize(size, Image.Resampling.BICUBIC, box=box))
            for band in np.moveaxis(self.values, -1, 0)
        ]
        return Bands(np.stack(bands, axis=-1).clip(-1, 1))


Picture: TypeAlias = Image.Image | Bands


def needed_part(
    picture: tuple[int, int], box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the pixels that `Bands.resized` reads, as (left, top, right, bottom).

    Args:
        picture: (width, height) of the whole.
        box: Part that is resized.
        size: (width, height) that it gets.
    """
    margins = [_SUPPORT * max(1.0, (box[axis + 2] - box[axis]) / size[axis]) + 1 for axis in (0, 1)]
    low = [max(0, math.floor(box[axis] - margins[axis])) for axis in (0, 1)]
    high = [min(picture[axis], math.ceil(box[axis + 2] + margins[axis])) for axis in (0, 1)]
    return low[0], low[1], high[0], high[1]


def range_of(value_range: Sequence[float], channels: Sequence[int]) -> list[float]:
    """Return the range of some channels of images, where it is declared for all of them or for each in turn.

    Args:
        value_range: Lowest and highest value, for all channels or for each in turn, or empty.
        channels: Counted from 0; none: all.
    """
    if len(value_range) <= 2 or not channels:
        return [*value_range]
    return [end for channel in channels for end in value_range[2 * channel : 2 * channel + 2]]


def in_range(values: np.ndarray, *, value_range: Sequence[float], clip: bool) -> Bands:
    """Return numbers [H, W, C] as a picture, the lowest of their range as -1 and the highest as 1.

    Args:
        values: Any real numbers.
        value_range: Lowest and highest value, for all channels or for each in turn.
        clip: Whether values outside are taken for the nearest end.

    Raises:
        ValueError: A number isn't finite, or lies outside and isn't to be clipped.
    """
    low, high = (np.array(value_range[end::2], dtype=np.float64) for end in (0, 1))
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        raise ValueError("it holds NaN or infinity")
    if not clip and ((exact < low).any() or (exact > high).any()):
        least, most = exact.min(axis=(0, 1)), exact.max(axis=(0, 1))
        channel = int(np.argmax((least < low) | (most > high)))
        bounds = np.broadcast_to(low, least.shape)[channel], np.broadcast_to(high, least.shape)[channel]
        raise ValueError(
            f"its channel {channel} has values from {least[channel]:g} to {most[channel]:g}, outside of value_range "
            f"{bounds[0]:g} to {bounds[1]:g}; widen it, or set clip_values"
        )
    return Bands((2 * (exact.clip(low, high) - low) / (high - low) - 1).astype(np.float32))


def out_of_range(values: np.ndarray, *, value_range: Sequence[float]) -> np.ndarray:
    """Return values [H, W, C] in [-1, 1] in the units of their range, float32; values outside are clamped."""
    low, high = (np.array(value_range[end::2], dtype=np.float64) for end in (0, 1))
    return ((values.astype(np.float64).clip(-1, 1) + 1) / 2 * (high - low) + low).astype(np.float32)
