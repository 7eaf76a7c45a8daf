"""Pillow's antialiased bicubic resizing on tensors, bit by bit, so that pictures may be resized on a device."""

from __future__ import annotations

import functools

import numpy as np
import PIL
import torch
from torch import Tensor

from ldm_vae.images.transforms import Box, Size

_BITS = 22  # behind the point of a weight, as in Pillow's Resample.c for 8 bits a channel
_SUPPORT = 2.0  # of the bicubic filter, in pixels of the smaller picture
_PILLOW = int(PIL.__version__.split(".")[0])
_MOST_PRODUCTS = 1 << 25  # at once, of 4 bytes each


def resize_pixels(pixels: Tensor, box: Box, *, size: Size) -> Tensor:
    """Return `box` of a picture, resized as Pillow's `resize(size, BICUBIC, box=box)` does it, with the same bits.

    Rows and columns are summed up in whole numbers, in two passes, and rounded to 8 bits after each.

    Args:
        pixels: [C, H, W], uint8.
        box: (left, top, right, bottom) in pixels; fractions are allowed.
        size: (width, height) of the result.

    Returns:
        [C, height, width], uint8, on the same device.
    """
    left, top, right, bottom = box
    _, height, width = pixels.shape
    columns, across = _taps(width, left, right, size[0], pixels.device)
    rows, down = _taps(height, top, bottom, size[1], pixels.device)
    if _columns_first((width, height), size=size):
        return _along_rows(_along_rows(pixels.transpose(1, 2), rows, down).transpose(1, 2), columns, across)
    return _along_rows(_along_rows(pixels, columns, across).transpose(1, 2), rows, down).transpose(1, 2)


def _columns_first(picture: Size, *, size: Size) -> bool:
    """Whether Pillow sums up columns before rows: from 13 on, where the height shrinks by much more than the width.

    By how much was found by comparing; the picture counts, and not the box.
    """
    fewer_columns, fewer_rows = picture[0] - size[0], picture[1] - size[1]
    return _PILLOW >= 13 and fewer_rows > max(0, 2 * fewer_columns)


def _along_rows(pixels: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of each row's pixels at places [n, taps]: [C, H, W] becomes [C, H, n]."""
    at_once = max(1, _MOST_PRODUCTS // (len(pixels) * places.numel()))
    parts = []
    for part in pixels.split(at_once, dim=1):
        sums = (part[:, :, places] * weights).sum(-1, dtype=torch.int32)
        parts.append(((sums + (1 << _BITS - 1)) >> _BITS).clamp_(0, 255).to(torch.uint8))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@functools.lru_cache(maxsize=512)
def _taps(length: int, start: float, end: float, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which pixels of a row each of `count` new ones is made of, and by which weights, both [count, taps].

    Args:
        length: Pixels of the row.
        start: Where the part of it that is taken begins, in pixels.
        end: Where it ends.
        count: Pixels that the part becomes.
        device: Where the tensors go.
    """
    # Pillow takes a box's edges in single precision, and all else in double.
    scale = float(np.float32(end) - np.float32(start)) / count
    widened = max(scale, 1.0)
    centres = float(np.float32(start)) + (np.arange(count) + 0.5) * scale
    first = np.maximum((centres - _SUPPORT * widened + 0.5).astype(np.int64), 0)
    behind = np.minimum((centres + _SUPPORT * widened + 0.5).astype(np.int64), length)
    places = first[:, None] + np.arange((behind - first).max())
    weights = _bicubic((places - centres[:, None] + 0.5) * (1.0 / widened))
    weights[places >= behind[:, None]] = 0.0
    total = np.zeros(count)
    for column in weights.T:  # in Pillow's order
        total += column
    weights /= np.where(total == 0.0, 1.0, total)[:, None]
    whole = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return torch.from_numpy(places.clip(max=length - 1)).to(device), torch.from_numpy(whole).to(device)


def _bicubic(distances: np.ndarray) -> np.ndarray:
    """Return Keys' filter (1981) with a = -1/2, in Pillow's order, at distances in pixels of the smaller picture."""
    a, x = -0.5, np.abs(distances)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
