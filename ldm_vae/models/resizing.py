"""Pictures and latents of another size, by products of matrices."""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic", "area"]


def resized(pictures: Tensor, size: tuple[int, int], *, kind: Interpolation) -> Tensor:
    """Scale pictures or latents to a size.

    `bilinear` and `bicubic` are those of `F.interpolate(..., antialias=True)`, `area` is its mean over areas. Each is
    computed as two products of matrices in float32: their gradient adds in a fixed order on every device.

    Args:
        pictures: [B, C, H, W].
        size: New height and width, in pixels.
        kind: How new pixels are made of old ones.

    Returns:
        [B, C, height, width], float32; of the same size, the pictures themselves.
    """
    (height, width), (new_height, new_width) = pictures.shape[-2:], size
    with torch.autocast(pictures.device.type, enabled=False):
        scaled = pictures.float()
        if new_height != height:
            scaled = scaling_matrix(height, new_height, pictures.device, kind) @ scaled
        if new_width != width:
            scaled = scaled @ scaling_matrix(width, new_width, pictures.device, kind).T
    return scaled


@functools.lru_cache(maxsize=256)
def scaling_matrix(side: int, new_side: int, device: torch.device, kind: Interpolation = "bilinear") -> Tensor:
    """Return the matrix [new_side, side] that scales a column of `side` pixels to `new_side`."""
    columns, size = torch.eye(side)[None, None], (new_side, side)
    if kind == "area":
        scaled = F.interpolate(columns, size=size, mode="area")
    else:
        scaled = F.interpolate(columns, size=size, mode=kind, align_corners=False, antialias=True)
    return scaled[0, 0].to(device)
