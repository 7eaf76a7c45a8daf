"""Image files of every kind to upright pictures of 1, 3 or 4 channels, decoding no more of them than is needed."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ldm_vae.data.transforms import Box, resize_crop

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""

OVERSAMPLING = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only where so many decoded pixels are left for each pixel of the result."""

_BAD_FILE_ERRORS = (
    OSError,  # vanished, forbidden, truncated, not an image
    SyntaxError,  # what Pillow's parsers raise
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""


class UnreadableImage(ValueError):
    """An image that can't be read: `name` says which, `reason` why, in one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} can't be read as an image: {self.reason}"


def decode_image(source: bytes | str | Path, *, channels: int, name: str | None = None) -> Image.Image:
    """Return the whole picture, upright, in mode L, RGB or RGBA for 1, 3 or 4 channels.

    Transparency is laid on white for 1 and 3 channels and kept for 4, 16-bit grey is scaled to 8 bits, and of an
    animation the first frame is taken.

    Args:
        source: Path of the file, or its content.
        channels: 1, 3 or 4.
        name: What errors call it; by default the path.

    Raises:
        UnreadableImage: The file is missing, damaged, too large or no image.
    """
    return _guarded(source, name, lambda image: _load(image, channels=channels, target=None)[0])


def read_crop(
    source: bytes | str | Path,
    *,
    channels: int,
    resolution: int,
    box_of: Callable[[tuple[int, int]], Box],
    name: str | None = None,
) -> Image.Image:
    """Return a square of the picture, resized to `resolution` pixels a side, like `decode_image` otherwise.

    The square is chosen from the size in the file's header, so that a JPEG of which it is much larger than
    `resolution` is decoded at 1/2, 1/4 or 1/8 of its size at once, from fewer coefficients.

    Args:
        source: Path of the file, or its content.
        channels: 1, 3 or 4.
        resolution: Side of the result, in pixels.
        box_of: Gives the square for the upright picture's (width, height).
        name: What errors call it; by default the path.

    Raises:
        UnreadableImage: The file is missing, damaged, too large or no image.
    """

    def crop(image: Image.Image) -> Image.Image:
        box = box_of(_upright_size(image))
        target = OVERSAMPLING * resolution / (box[2] - box[0])
        picture, scale = _load(image, channels=channels, target=target)
        left, top, right, bottom = (edge / scale for edge in box)
        box = (left, top, min(right, picture.width), min(bottom, picture.height))
        return resize_crop(picture, box, resolution=resolution)

    return _guarded(source, name, crop)


def _guarded(source: bytes | str | Path, name: str | None, read: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Open `source`, hand it to `read`, and turn what Pillow raises for bad files into `UnreadableImage`."""
    name = name if name is not None else "image" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on odd metadata and large pictures
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return read(image)
    except _BAD_FILE_ERRORS as error:
        raise UnreadableImage(name, _reason(error, source)) from error


def _reason(error: Exception, source: bytes | str | Path) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or the EXIF data are broken."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _BAD_FILE_ERRORS:
        return 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":
        image.load()
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _load(image: Image.Image, *, channels: int, target: float | None) -> tuple[Image.Image, float]:
    """Decode: return the upright picture in the mode of `channels`, and how much smaller than the original it is.

    Where `target` < 1, a JPEG may be decoded smaller than it is, but no smaller than `target` of its size.
    """
    orientation = _orientation(image)
    scale = 1.0
    if image.format in ("JPEG", "MPO"):
        width, height = image.size
        size = (max(1, int(width * target)), max(1, int(height * target))) if target is not None else image.size
        drafted = image.draft("L" if channels == 1 else None, size)
        if drafted is not None:
            scale = width / drafted[1][2]
    image.load()
    picture = _convert(image, channels=channels)
    if orientation in _TRANSPOSE:
        picture = picture.transpose(_TRANSPOSE[orientation])
    return picture, scale


def _convert(image: Image.Image, *, channels: int) -> Image.Image:
    """Return a decoded image in the mode of `channels`."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of which the range isn't known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    mode = MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image in 8 bits, 65535 being white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its grey values don't fit 16 bits, so white isn't known")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey
