"""Pictures in and out: files cropped alike, strips, grids and animations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import FieldError, mark, require
from ldm_vae.config.views import view_of
from ldm_vae.encoding.buckets import covering_box
from ldm_vae.images.bands import out_of_range
from ldm_vae.images.decoding import decode_image, read_crop
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.transforms import Box, Size, crop_box, middle_box, to_image, to_shown, to_tensor
from ldm_vae.system.files import naming
from ldm_vae.system.text import printable

_GAP = 2  # pixels between the pictures of a grid
_WEBP_QUALITY = 90


def read_picture(
    path: str | Path, *, channels: int, rules: ReadingRules, field: str, resolution: int | Size | None = None
) -> Tensor:
    """Read a file as `encode` does.

    Args:
        path: The file.
        channels: Channels that the picture is to have.
        rules: What it may cost, and as what it is read.
        field: The option that named it, for the error.
        resolution: Side of the square, or (width, height), that it is resized and cropped to; None: as it is.

    Returns:
        [C, H, W] in [-1, 1].

    Raises:
        FieldError: It can't be read.
    """
    wanted = (resolution, resolution) if isinstance(resolution, int) else resolution

    def box_of(size: Size) -> Box:
        assert wanted is not None
        if wanted[0] == wanted[1]:
            return crop_box(size, resolution=wanted, crop="center")
        return covering_box(size, size=wanted)

    try:
        if wanted is None:
            return to_tensor(decode_image(path, channels=channels, rules=rules))
        return to_tensor(read_crop(path, channels=channels, resolution=wanted, box_of=box_of, rules=rules))
    except UnreadableImage as error:
        raise FieldError(f"{mark(field)}: {error}") from None


def cut_alike(images: Sequence[Tensor], *, multiple: int) -> list[Tensor]:
    """Cut pictures [C, H, W] about their middles to the largest size that all have, a multiple of `multiple` a side.

    Raises:
        ValueError: They have fewer pixels than that.
    """
    height, width = (min(image.shape[axis] for image in images) // multiple * multiple for axis in (1, 2))
    sizes = " and ".join(map(told_size, images))
    require(
        height > 0 and width > 0,
        f"pictures of {sizes} pixels: one has fewer than the model's factor {multiple} a side; give a <resolution>",
    )
    return [_middle(image, (width, height)) for image in images]


def _middle(image: Tensor, cut: Size) -> Tensor:
    left, top, right, bottom = middle_box((image.shape[2], image.shape[1]), cut=cut)
    return image[:, top:bottom, left:right]


def told_size(image: Tensor) -> str:
    """Return the size of a picture [C, H, W] as `640x480`."""
    return f"{image.shape[2]}x{image.shape[1]}"


@dataclass(frozen=True, kw_only=True)
class PictureWriting:
    """How decoded images [C, H, W] in [-1, 1] are written: pictures, or arrays where they are numbers in a range."""

    channels: int
    rules: ReadingRules

    @property
    def suffix(self) -> str:
        """`.png`, or `.npy` for numbers of a declared range and for channels that make no picture."""
        return ".png" if self.channels in (1, 3, 4) and not self.rules.reads_numbers else ".npy"

    def write(self, path: Path, image: Tensor) -> None:
        """Write an image to a path of this suffix; values outside are clamped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            if self.suffix == ".png":
                to_image(image).save(path)
                return
            values = out_of_range(image.permute(1, 2, 0).numpy(), value_range=self.rules.value_range or (-1.0, 1.0))
            np.save(path, values, allow_pickle=False)

    def shown(self, image: Tensor) -> Image.Image:
        """Return the picture of an image for strips and grids: its colours, or its first channels."""
        return to_shown(image, view_of(self.channels, numbers=self.rules.reads_numbers))


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one size beside each other."""
    width, height = pictures[0].size
    whole = Image.new(pictures[0].mode, (width * len(pictures), height))
    for column, picture in enumerate(pictures):
        whole.paste(picture, (column * width, 0))
    return whole


def mosaic(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one size in rows of a grid that is about square, with thin white lines between them."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (side + _GAP for side in pictures[0].size)
    whole = Image.new("RGB", (columns * width - _GAP, rows * height - _GAP), "white")
    for number, picture in enumerate(pictures):
        place = (number % columns * width, number // columns * height)
        whole.paste(picture, place, picture if picture.mode == "RGBA" else None)
    return whole


def save_animation(path: Path, pictures: Sequence[Image.Image], *, fps: float) -> None:
    """Write pictures as an animated WebP that goes there and back for ever."""
    frames = [picture if picture.mode == "RGBA" else picture.convert("RGB") for picture in pictures]
    frames += frames[-2:0:-1]
    with naming(path):
        frames[0].save(
            path,
            format="WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=max(1, round(1000 / fps)),
            loop=0,
            quality=_WEBP_QUALITY,
        )


def told_cut(name: str, before: Tensor, after: Tensor) -> str:
    """Return what was done to a picture's size, for the user."""
    same = before.shape == after.shape
    return f"{printable(name)} {told_size(before)}" + ("" if same else f", cut about its middle to {told_size(after)}")
