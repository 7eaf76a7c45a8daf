"""Image files of every kind to upright pictures of 1, 3 or 4 channels, decoding no more of them than is needed."""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ldm_vae.images.transforms import Box, resize_crop

T = TypeVar("T")

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""

OVERSAMPLING = 4 / 3
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only where so many decoded pixels are left for each pixel of the result, along
a side: with fewer, photographs come out at less than 40 dB against decoding at full size."""

_JPEG_FORMATS = ("JPEG", "MPO")

_BAD_FILE_ERRORS = (  # what Pillow raises at bad files, by its sources and by fuzzing
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening a file that aren't the file's fault."""

_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)
"""The nearest of 256 greys to each of 65536."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation; from 5 on it swaps width and height."""


class UnreadableImage(ValueError):
    """An image that can't be read: `name` says which, `reason` why, in one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"the image {self.name} can't be read: {self.reason}"


def decode_image(source: bytes | str | Path, *, channels: int, name: str | None = None) -> Image.Image:
    """Return the whole picture, upright, in mode L, RGB or RGBA for 1, 3 or 4 channels.

    Transparency is laid on white for 1 and 3 channels and kept for 4, 16-bit grey is scaled to 8 bits, and of an
    animation the first frame is taken. Colour profiles are ignored, as everywhere in this field.

    Args:
        source: Path of the file, or its content.
        channels: 1, 3 or 4.
        name: What errors call it; by default the path.

    Raises:
        UnreadableImage: The file is missing, damaged, too large or no image.
    """

    def whole(image: Image.Image) -> Image.Image:
        _reduce(image, channels=channels, largest=1)
        return _decode(image, channels=channels)

    return _guarded(source, whole, name=name)


def convert_picture(picture: Image.Image, *, channels: int) -> Image.Image:
    """Return a picture that is open already upright and in the mode that `decode_image` gives."""
    return _decode(picture, channels=channels)


def read_crop(
    source: bytes | str | Path,
    *,
    channels: int,
    resolution: int | tuple[int, int],
    box_of: Callable[[tuple[int, int]], Box],
    name: str | None = None,
) -> Image.Image:
    """Return a part of the picture, resized to `resolution` pixels, and otherwise like `decode_image`.

    The part is chosen by the size in the file's header, so that a JPEG of which it is much larger than `resolution`
    is decoded at 1/2, 1/4 or 1/8 of its size at once, from fewer coefficients.

    Args:
        source: Path of the file, or its content.
        channels: 1, 3 or 4.
        resolution: Side of the square result in pixels, or its (width, height).
        box_of: Gives the part for the upright picture's (width, height).
        name: What errors call it; by default the path.

    Raises:
        UnreadableImage: The file is missing, damaged, too large or no image.
    """

    def crop(image: Image.Image) -> Image.Image:
        left, top, right, bottom = box_of(_upright_size(image))
        width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
        largest = min((right - left) / width, (bottom - top) / height) / OVERSAMPLING
        factor = _reduce(image, channels=channels, largest=largest)
        picture = _decode(image, channels=channels)
        reduced = (left / factor, top / factor, right / factor, bottom / factor)
        return resize_crop(picture, reduced, resolution=resolution)

    return _guarded(source, crop, name=name)


def upright_size(source: bytes | str | Path, *, name: str | None = None) -> tuple[int, int]:
    """Return the (width, height) of the upright picture, from the header alone where that tells them.

    Raises:
        UnreadableImage: The file is missing, too large or no image; damage behind the header may pass.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        if image.format == "PNG" and "exif" not in image.info:
            return image.size  # an orientation behind the pixels isn't worth decoding them
        return _upright_size(image)

    return _guarded(source, size, name=name)


def _guarded(source: bytes | str | Path, read: Callable[[Image.Image], T], *, name: str | None) -> T:
    """Open `source`, hand it to `read`, and turn what Pillow raises at bad files into `UnreadableImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd metadata and large pictures
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return read(image)
    except _BAD_FILE_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            raise
        if name is None:
            name = f"of {len(source)} bytes" if isinstance(source, bytes) else str(source)
        raise UnreadableImage(name, _reason(error, source)) from error


def _reason(error: Exception, source: bytes | str | Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        return "it is empty" if size == 0 else "it is in no format that Pillow knows"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format not in _JPEG_FORMATS:
        image.load()  # which turns a TIFF upright, and may find a PNG's orientation only behind the pixels
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or where the EXIF data are broken."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _BAD_FILE_ERRORS:
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _reduce(image: Image.Image, *, channels: int, largest: float) -> int:
    """Have a JPEG decoded at 1 / factor of its size, and as grey where that is all that's wanted.

    Return the factor: 8, 4, 2 or 1, and at most `largest`.
    """
    if image.format not in _JPEG_FORMATS:
        return 1
    width, height = image.size
    factor = next((factor for factor in (8, 4, 2) if factor <= largest), 1)
    drafted = image.draft("L" if channels == 1 else None, (width // factor, height // factor))
    return 1 if drafted is None else round(width / drafted[1][2])


def _decode(image: Image.Image, *, channels: int) -> Image.Image:
    """Return the upright picture in the mode of `channels`."""
    image.load()
    orientation = _orientation(image)
    picture = _convert(image, channels=channels)
    return picture.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else picture


def _convert(image: Image.Image, *, channels: int) -> Image.Image:
    """Return a decoded image in the mode of `channels`."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range isn't known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("1", "L", "P", "RGB"):
        image = image.convert("RGB")  # there is no direct way from CMYK and the like to grey
    mode = MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image in 8 bits, 65535 being white."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its grey values don't fit 16 bits, so which is white isn't known")
    grey = Image.fromarray(_8_BITS[values])
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey
