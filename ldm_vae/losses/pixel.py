"""Pixel distances."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def pixel_distance(images: Tensor, reconstruction: Tensor, *, kind: Literal["l1", "l2"]) -> Tensor:
    """Return the mean absolute (l1) or squared (l2) difference over all elements: a scalar, free of the resolution."""
    difference = images - reconstruction
    return difference.abs().mean() if kind == "l1" else difference.square().mean()
