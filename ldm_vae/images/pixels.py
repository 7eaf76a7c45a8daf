"""From what a file's numbers mean to pictures of 1, 3 or 4 channels of 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2

_16_TO_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)
"""The nearest of 256 greys to each of 65536."""


@dataclass(kw_only=True, frozen=True)
class Units:
    """What a file says about its numbers and Pillow's mode doesn't."""

    bits: int = 8
    """Bits that a sample has in the file."""
    white_is_zero: bool = False
    """Whether grey is given the wrong way round, and Pillow leaves it so."""
    signed: bool = False
    """Whether samples are signed integers."""
    is_tiff: bool = False
    low_bytes: Callable[[], Image.Image] | None = None
    """For a PNG of 16 bits a colour: decodes the lower bytes, where Pillow keeps the upper ones."""


def stated_units(image: ImageFile, *, reopen: Callable[[], ImageFile]) -> Units:
    """Return what an opened file, not decoded yet, says about its numbers.

    Args:
        image: The opened file.
        reopen: Opens the file again.
    """
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = int(tags.get(_BITS_PER_SAMPLE, (1,))[0])
        return Units(
            bits=bits,
            white_is_zero=bits > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
            signed=tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED,
            is_tiff=True,
        )
    if image.format == "PNG" and image.tile:
        raw = str(image.tile[0][3])
        bits = {"1": 1, "L;2": 2, "L;4": 4, "I;16B": 16, "RGB;16B": 16}.get(raw, 8)
        return Units(bits=bits, low_bytes=(lambda: _low_bytes(reopen())) if raw == "RGB;16B" else None)
    return Units()


def _low_bytes(image: ImageFile) -> Image.Image:
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # the unpacker that keeps each second byte
    image.load()
    return image


def to_channels(image: Image.Image, *, channels: int, units: Units) -> Image.Image:
    """Return a decoded image in the mode of `channels`.

    Raises:
        ValueError: Which of its numbers is white isn't known.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range isn't known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey_to_8_bits(image, units)
    elif units.signed:
        image = _signed_bytes(image)
    elif "transparency" in image.info:
        image = _with_transparent_value(image, units)
    if image.mode in ("La", "RGBa"):  # colours multiplied by their alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("1", "L", "P", "RGB"):
        image = image.convert("RGB")  # there is no direct way from CMYK and the like to grey
    mode = MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def _grey_to_8_bits(image: Image.Image, units: Units) -> Image.Image:
    """Return a grey image of more than 8 bits in 8 bits; the largest number that its samples can take is white."""
    values = np.asarray(image)
    bits = units.bits if units.is_tiff else 16
    if bits > 16:
        raise ValueError(f"its grey values are integers of {bits} bits, of which it isn't known which is white")
    white = 2 ** (bits - 1) - 1 if units.signed else 2**bits - 1
    if values.min() < 0 or values.max() > white:
        raise ValueError(f"its grey values aren't between 0 and {white}, so which is white isn't known")
    grey = (values.astype(np.uint32) * 255 + white // 2) // white if white != 65535 else _16_TO_8_BITS[values]
    picture = Image.fromarray((255 - grey if units.white_is_zero else grey).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return picture


def _signed_bytes(image: Image.Image) -> Image.Image:
    """Return a grey image of signed bytes, which Pillow takes for unsigned ones."""
    values = np.asarray(image).view(np.int8).astype(np.int32)
    if image.mode != "L" or values.min() < 0:
        raise ValueError("its values are signed, and some negative, so which is black isn't known")
    return Image.fromarray(((values * 255 + 63) // 127).astype(np.uint8))


def _with_transparent_value(image: Image.Image, units: Units) -> Image.Image:
    """Return an image whose transparent value is given in the file's depth with an alpha channel, or unchanged."""
    transparent = image.info["transparency"]
    if isinstance(transparent, int) and image.mode in ("1", "L") and units.bits < 8:
        largest = 2**units.bits - 1
        grey = image.convert("L")
        alpha = np.where(np.asarray(grey) == (transparent & largest) * 255 // largest, 0, 255)
    elif isinstance(transparent, tuple) and units.low_bytes is not None:
        upper, lower = np.asarray(image).astype(np.uint16), np.asarray(units.low_bytes())
        alpha = np.where((upper * 256 + lower == np.array(transparent)).all(axis=-1), 0, 255)
        grey = image.copy()
    else:
        return image
    grey.info.pop("transparency", None)
    grey.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return grey
