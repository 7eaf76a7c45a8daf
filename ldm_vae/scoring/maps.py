"""Maps of errors: reduced to what is kept of a large picture, and drawn in colour."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Red, green and blue from no error to the brightest, in equal steps."""
_BROKEN = (0, 255, 255)
"""What shows an error that is no number."""


def draw_heat(values: Tensor, *, limit: float) -> Image.Image:
    """Return errors [H, W] in colour, from black for 0 to the brightest for `limit` and above."""
    colours = torch.tensor(HEAT, dtype=torch.float32)
    place = (values.float() / limit).clamp(0, 1) * (len(HEAT) - 1)
    broken = place.isnan()
    place = place.nan_to_num(0.0)
    below = place.floor().clamp(max=len(HEAT) - 2).long()
    part = (place - below)[..., None]
    pixels = (colours[below] * (1 - part) + colours[below + 1] * part).round()
    pixels[broken] = torch.tensor(_BROKEN, dtype=torch.float32)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def reduced(values: Tensor, *, side: int) -> Tensor:
    """Return a map [H, W] whose sides are at most `side`; each cell has the largest value that it covers."""
    height, width = values.shape
    shrink = max(height, width) / side
    if shrink <= 1:
        return values
    size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
    return nn.functional.adaptive_max_pool2d(values[None], size)[0]


def small(picture: Image.Image, *, side: int) -> Image.Image:
    """Return a picture whose sides are at most `side`, each pixel the mean of what it covers."""
    shrink = max(picture.size) / side
    if shrink <= 1:
        return picture
    width, height = (max(1, round(length / shrink)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)
