"""From pictures to tensors and back: where to crop, how to resize, which numbers a pixel becomes."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.names import Crop
from ldm_vae.config.views import View, shown_channels
from ldm_vae.images.bands import Bands, Picture
from ldm_vae.system.pixels import from_pixels, to_pixels

Box: TypeAlias = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the upright picture; fractions are allowed."""


Size: TypeAlias = tuple[int, int]
"""(width, height) in pixels."""


def crop_box(
    size: Size,
    *,
    resolution: int | Size,
    crop: Crop,
    min_area: float = 1.0,
    rng: np.random.Generator | None = None,
    before: tuple[int, int] = (1, 2),
) -> Box:
    """Return the part of a picture that becomes the training image, of the same aspect ratio.

    `random` and `center` take the largest part that fits, at a random place or in the middle: the same as resizing the
    picture until it just covers `resolution` and cropping then, on whole pixels of the resized picture.
    `random_resized` takes a part whose area is uniform between `min_area` of the picture's and the largest that fits.

    Args:
        size: (width, height) of the picture.
        resolution: Side of the resized square, or (width, height), in pixels.
        crop: How to choose the part.
        min_area: Smallest part of the picture's area (`random_resized`), in (0, 1].
        rng: Source of randomness; `center` needs none.
        before: Fraction of what is cut off that `center` cuts off at the left or above: a half, or another one.
    """
    width, height = size
    wide, high = (resolution, resolution) if isinstance(resolution, int) else resolution
    if width * high <= height * wide:  # the whole width fits
        largest = float(width), width * (high / wide)
    else:
        largest = height * (wide / high), float(height)
    box = largest
    if crop == "random_resized":
        assert rng is not None
        most = largest[0] * largest[1] / (width * height)
        area = rng.uniform(min(min_area, most), most)
        side = min(math.sqrt(area * width * height * (wide / high)), largest[0])
        box = side, side * (high / wide)
        left, top = rng.uniform(0, max(0.0, width - box[0])), rng.uniform(0, max(0.0, height - box[1]))
    else:
        pixel = largest[0] / wide
        spare_x, spare_y = width - box[0], height - box[1]
        spare = int(max(spare_x, spare_y) / pixel)
        if crop == "random":
            assert rng is not None
            offset = int(rng.integers(spare, endpoint=True)) * pixel
        else:
            offset = spare * before[0] // before[1] * pixel
        left, top = (offset, 0.0) if spare_x > spare_y else (0.0, offset)
    left, top = max(0.0, min(left, width - box[0])), max(0.0, min(top, height - box[1]))
    return left, top, min(left + box[0], float(width)), min(top + box[1], float(height))


def middle_box(size: tuple[int, int], *, cut: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the middle of a picture; both sizes are (width, height), in pixels."""
    left, top = ((side - part) // 2 for side, part in zip(size, cut, strict=True))
    return left, top, left + cut[0], top + cut[1]


def mirrored(picture: Picture) -> Picture:
    """Return a picture with left and right exchanged."""
    if isinstance(picture, Bands):
        return picture.mirrored()
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def resize_crop(image: Image.Image, box: Box, *, resolution: int | Size) -> Image.Image:
    """Return `box` of the image, resized in one pass, bicubic and antialiased.

    Args:
        image: The picture.
        box: The part of it.
        resolution: Side of the square result in pixels, or its (width, height).
    """
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def to_tensor(image: Picture) -> Tensor:
    """Return an image of mode L, RGB or RGBA, or an array, as a tensor [C, H, W], float32 in [-1, 1]."""
    if isinstance(image, Bands):
        return torch.from_numpy(np.ascontiguousarray(image.values.transpose(2, 0, 1)))
    pixels = np.array(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return from_pixels(torch.from_numpy(np.ascontiguousarray(pixels)))


def to_image(image: Tensor) -> Image.Image:
    """Return a tensor [C, H, W] in [-1, 1], of 1, 3 or 4 channels, as a picture; values outside are clamped."""
    array = to_pixels(image.detach().cpu()).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else np.ascontiguousarray(array))


def to_shown(image: Tensor, view: View | None) -> Image.Image:
    """Return a picture of a tensor [C, H, W] in [-1, 1] of any number of channels, for grids.

    Args:
        image: The image.
        view: Which channels are shown; None: the first three, or the first.
    """
    return to_image(image[list(shown_channels(len(image), view))])
