"""Pictures as a Python program holds them, to tensors and back: PIL, numpy or tensors in, PIL out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.images.bands import Bands
from ldm_vae.images.decoding import convert_picture
from ldm_vae.images.transforms import crop_box, middle_box, resize_crop, to_image, to_tensor
from ldm_vae.system.pixels import from_pixels

Picture: TypeAlias = Image.Image | np.ndarray | Tensor
"""PIL in any mode; numpy [H, W] or [H, W, C], tensor [C, H, W]: uint8, or floats in [-1, 1]."""


def unbatched(images: Picture | Sequence[Picture]) -> list[Picture]:
    """Return pictures one by one, of one or several."""
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    return list(images)


def to_image_tensor(picture: Picture, *, channels: int, resolution: int | None) -> Tensor:
    """Return a picture as a tensor [C, H, W], float32 in [-1, 1] on the CPU."""
    if not isinstance(picture, Image.Image):
        if isinstance(picture, np.ndarray):
            picture = torch.from_numpy(np.atleast_3d(picture).transpose(2, 0, 1).copy())
        picture = _check_channels(picture.detach().cpu(), channels=channels)
        if picture.dtype != torch.uint8:
            return _check_range(picture, resolution=resolution)
        if channels not in (1, 3, 4):
            return _resized(from_pixels(picture), resolution=resolution)
        picture = to_image(from_pixels(picture))
    picture = convert_picture(picture, channels=channels)
    if resolution is not None:
        box = crop_box(picture.size, resolution=resolution, crop="center")
        picture = resize_crop(picture, box, resolution=resolution)
    return to_tensor(picture)


def cut_middle(picture: Tensor, *, factor: int) -> Tensor:
    """Return the middle of [C, H, W], a multiple of `factor` pixels a side."""
    height, width = (side // factor * factor for side in picture.shape[1:])
    if height == 0 or width == 0:
        raise ValueError(f"images: {picture.shape[2]}x{picture.shape[1]} pixels are fewer than the factor {factor}")
    left, top, right, bottom = middle_box((picture.shape[2], picture.shape[1]), cut=(width, height))
    return picture[:, top:bottom, left:right]


def to_picture(image: Tensor) -> Image.Image | np.ndarray:
    """Return [C, H, W] in [-1, 1] as a picture, or where the channels make none as an array [H, W, C]; clamped."""
    if len(image) in (1, 3, 4):
        return to_image(image)
    return image.detach().float().cpu().clamp(-1, 1).permute(1, 2, 0).numpy()


def _resized(picture: Tensor, *, resolution: int | None) -> Tensor:
    """Return [C, H, W] of any number of channels at a resolution, if one is given."""
    if resolution is None:
        return picture
    bands = Bands(picture.permute(1, 2, 0).numpy())
    box = crop_box(bands.size, resolution=resolution, crop="center")
    return to_tensor(bands.resized((resolution, resolution), box))


def _check_channels(picture: Tensor, *, channels: int) -> Tensor:
    if picture.ndim == 3 and picture.shape[0] == 1 and channels == 3:
        return picture.expand(3, -1, -1)
    if picture.ndim != 3 or picture.shape[0] != channels:
        raise ValueError(
            f"images: a picture [C, H, W] of {list(picture.shape)} doesn't fit a model of {channels} channels"
        )
    return picture


def _check_range(picture: Tensor, *, resolution: int | None) -> Tensor:
    if not picture.is_floating_point():
        raise ValueError(f"images are of type {picture.dtype}; take uint8, or floats in [-1, 1]")
    if resolution is not None:
        raise ValueError("resolution is for pictures of 8 bits; resize those of floating-point numbers beforehand")
    if not picture.abs().max() <= 1 + 1e-3:
        raise ValueError("images of floating-point numbers must lie in [-1, 1]; for 0 to 255 take uint8")
    return picture.float()
