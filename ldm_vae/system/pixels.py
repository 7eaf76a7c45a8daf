"""Between 8-bit pixels and the range [-1, 1] that autoencoders take pictures in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

LEVELS_PER_UNIT = 127.5
"""8-bit levels in a difference of 1 between values in [-1, 1]."""

Span: TypeAlias = tuple[float, float]
"""The values of black and white."""
PICTURES: Span = (-1.0, 1.0)


def from_pixels(pixels: Tensor) -> Tensor:
    """Return pixels 0 to 255, of any type and shape, as float32 values in [-1, 1]."""
    return pixels.to(torch.float32, copy=True).div_(LEVELS_PER_UNIT).sub_(1)


def to_levels(values: Tensor) -> Tensor:
    """Return values in [-1, 1], of any shape, as levels from 0 to 255 in float32, not rounded.

    Values outside are clamped; NaN stays NaN.
    """
    return values.to(torch.float32, copy=True).add_(1).mul_(LEVELS_PER_UNIT).clamp_(0, 255)


def to_pixels(values: Tensor) -> Tensor:
    """Return values in [-1, 1], of any shape, as whole numbers 0 to 255 in float32: what a saved picture holds.

    Values outside are clamped; NaN stays NaN.
    """
    return values.to(torch.float32, copy=True).add_(1).mul_(LEVELS_PER_UNIT).round_().clamp_(0, 255)


def chosen_channels(images: Tensor, channels: Sequence[int]) -> Tensor:
    """Return these channels of images, in this order, [..., len(channels), H, W]; all as they are where none is named.

    Args:
        images: [..., C, H, W].
        channels: Counted from 0. One may be named several times.
    """
    if len(channels) == 0:
        return images
    # Slices, since numbers of channels would be copied to the device each time.
    return torch.cat([images.narrow(-3, channel, 1) for channel in channels], dim=-3)


def seen(images: Tensor, *, channels: Sequence[int] | None = None, alpha: int | None = None) -> list[Tensor]:
    """Return what a network for photographs sees of images: one picture of each, or where there is alpha two.

    With alpha a, in [0, 1], colours c become a c over black and a c + 1 - a over white, in that order. So colours
    don't count where nothing is opaque, and what is opaque counts whatever its colour.

    Args:
        images: [B, C, H, W] in [-1, 1].
        channels: Which are seen; None: grey is repeated, and others are red, green and blue.
        alpha: Which says how opaque a pixel is; None: all are opaque.

    Returns:
        Pictures [B, 3, H, W] in [-1, 1].
    """
    channels = tuple(channels or ((0,) if images.shape[1] == 1 else (0, 1, 2)))
    if len(channels) == 1:
        colours = images[:, channels[0], None].expand(-1, 3, -1, -1)
    elif images.shape[1] == 3 and channels == (0, 1, 2):
        colours = images
    else:
        colours = chosen_channels(images, channels)
    if alpha is None:
        return [colours]
    opacity = (images[:, alpha, None] + 1) / 2
    over_black = opacity * (colours + 1) - 1
    return [over_black, over_black + 2 * (1 - opacity)]


def as_pictures(values: Tensor, span: Span) -> Tensor:
    """Return values of any span as float32 in that of pictures, [-1, 1]; those that are so already as they are."""
    if span == PICTURES:
        return values
    low, high = span
    return values.float().sub(low).mul_(2 / (high - low)).sub_(1)
