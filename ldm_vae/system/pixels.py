"""Between 8-bit pixels and the range [-1, 1] that autoencoders take pictures in."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS_PER_UNIT = 127.5
"""8-bit levels in a difference of 1 between values in [-1, 1]."""


def from_pixels(pixels: Tensor) -> Tensor:
    """Return pixels 0 to 255, of any type and shape, as float32 values in [-1, 1]."""
    return pixels.to(torch.float32, copy=True).div_(LEVELS_PER_UNIT).sub_(1)


def to_pixels(values: Tensor) -> Tensor:
    """Return values in [-1, 1], of any shape, as whole numbers 0 to 255 in float32: what a saved picture holds.

    Values outside are clamped; NaN stays NaN.
    """
    return values.to(torch.float32, copy=True).add_(1).mul_(LEVELS_PER_UNIT).round_().clamp_(0, 255)


def as_rgb(images: Tensor) -> Tensor:
    """Return [B, 3, H, W] of [B, 1, 3 or 4, H, W]."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
