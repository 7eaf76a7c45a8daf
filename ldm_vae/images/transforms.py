"""From pictures to tensors and back: where to crop, how to resize, which numbers a pixel becomes."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.names import Crop
from ldm_vae.system.pixels import from_pixels, to_pixels

Box: TypeAlias = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the upright picture; fractions are allowed."""


def crop_box(
    size: tuple[int, int],
    *,
    resolution: int,
    crop: Crop,
    min_area: float = 1.0,
    rng: np.random.Generator | None = None,
) -> Box:
    """Return the square of a picture that becomes the training image.

    `random` and `center` take the largest square that fits, at a random place or in the middle: the same as resizing
    the short side to `resolution` and cropping then, on whole pixels of the resized picture. `random_resized` takes a
    square whose area is uniform between `min_area` of the picture's and the largest that fits.

    Args:
        size: (width, height) of the picture.
        resolution: Side of the resized square, in pixels.
        crop: How to choose the square.
        min_area: Smallest part of the picture's area (`random_resized`), in (0, 1].
        rng: Source of randomness; `center` needs none.
    """
    width, height = size
    short = min(width, height)
    if crop == "random_resized":
        assert rng is not None
        largest = short / max(width, height)
        area = rng.uniform(min(min_area, largest), largest)
        side = min(math.sqrt(area * width * height), float(short))
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    else:
        side = float(short)
        pixel = side / resolution
        spare = int((max(width, height) - short) / pixel)
        if crop == "random":
            assert rng is not None
            offset = int(rng.integers(spare, endpoint=True)) * pixel
        else:
            offset = spare // 2 * pixel
        left, top = (offset, 0.0) if width > height else (0.0, offset)
    left, top = min(left, width - side), min(top, height - side)
    return left, top, min(left + side, float(width)), min(top + side, float(height))


def middle_box(size: tuple[int, int], *, cut: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the middle of a picture; both sizes are (width, height), in pixels."""
    left, top = ((side - part) // 2 for side, part in zip(size, cut, strict=True))
    return left, top, left + cut[0], top + cut[1]


def resize_crop(image: Image.Image, box: Box, *, resolution: int | tuple[int, int]) -> Image.Image:
    """Return `box` of the image, resized in one pass, bicubic and antialiased.

    Args:
        image: The picture.
        box: The part of it.
        resolution: Side of the square result in pixels, or its (width, height).
    """
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def to_tensor(image: Image.Image) -> Tensor:
    """Return an image of mode L, RGB or RGBA as a tensor [C, H, W], float32 in [-1, 1]."""
    pixels = np.array(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return from_pixels(torch.from_numpy(np.ascontiguousarray(pixels)))


def to_image(image: Tensor) -> Image.Image:
    """Return a tensor [C, H, W] in [-1, 1], of 1, 3 or 4 channels, as a picture; values outside are clamped."""
    array = to_pixels(image.detach().cpu()).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else np.ascontiguousarray(array))
