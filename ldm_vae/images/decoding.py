"""Image files of every kind to upright pictures, decoding no more of them than is needed.

They are pictures of 8 bits and 1, 3 or 4 channels, or where a range is declared numbers of any channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.bands import Picture
from ldm_vae.images.formats import FORMATS
from ldm_vae.images.guard import BAD_FILE_ERRORS, guarded, open_content
from ldm_vae.images.limits import (
    LimitedBytes,
    LimitedFile,
    check_scans,
    check_size,
    silence_libtiff,
    without_png_text,
)
from ldm_vae.images.numbers import Numbers
from ldm_vae.images.pixels import Units, stated_units, to_channels
from ldm_vae.images.transforms import Box, Size, resize_crop

T = TypeVar("T")

OVERSAMPLING = 4 / 3
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only where so many decoded pixels are left for each pixel of the result, along
a side: with fewer, photographs come out at less than 40 dB against decoding at full size."""

_JPEG_FORMATS = ("JPEG", "MPO")

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


_DEFAULT_RULES = ReadingRules()


def decode_image(
    source: bytes | str | Path, *, channels: int, name: str | None = None, rules: ReadingRules = _DEFAULT_RULES
) -> Picture:
    """Return the whole picture, upright, in mode L, RGB or RGBA for 1, 3 or 4 channels.

    Where the rules declare a range, it is the file's numbers instead.

    Transparency is laid on white for 1 and 3 channels and kept for 4. Grey of more than 8 bits is scaled, so that the
    largest number that the file's samples can take is white. Of an animation the first frame is taken. Colour profiles
    are ignored, as everywhere in this field.

    Args:
        source: Path of the file, or its content.
        channels: Channels that the picture is to have; 1, 3 or 4 of pictures of 8 bits.
        name: What errors call it; by default the path.
        rules: What the picture may cost.

    Raises:
        UnreadableImage: The file is missing, damaged, too large or no image.
    """
    if rules.reads_numbers:
        return _of_numbers(source, lambda numbers: numbers.whole(), channels=channels, name=name, rules=rules)

    def whole(image: Image.Image, units: Units) -> Image.Image:
        _reduce(image, channels=channels, largest=1)
        check_size(image, rules)
        return _decode(image, channels=channels, units=units)

    return of_picture(source, whole, name=name, rules=rules)


def convert_picture(picture: Image.Image, *, channels: int) -> Image.Image:
    """Return a picture that is open already upright and in the mode that `decode_image` gives."""
    return _decode(picture, channels=channels, units=Units())


def read_crop(
    source: bytes | str | Path,
    *,
    channels: int,
    resolution: int | tuple[int, int],
    box_of: Callable[[tuple[int, int]], Box],
    name: str | None = None,
    rules: ReadingRules = _DEFAULT_RULES,
) -> Picture:
    """Return a part of the picture, resized to `resolution` pixels, and otherwise like `decode_image`.

    The part is chosen by the size in the file's header, so that a JPEG of which it is much larger than `resolution`
    is decoded at 1/2, 1/4 or 1/8 of its size at once, from fewer coefficients.

    Args:
        source: Path of the file, or its content.
        channels: Channels that the picture is to have; 1, 3 or 4 of pictures of 8 bits.
        resolution: Side of the square result in pixels, or its (width, height).
        box_of: Gives the part for the upright picture's (width, height).
        name: What errors call it; by default the path.
        rules: What the picture may cost.

    Raises:
        UnreadableImage: The file is missing, damaged, too large or no image.
    """
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if rules.reads_numbers:

        def part(numbers: Numbers) -> Picture:
            return numbers.part(box_of(numbers.size), size=(width, height))

        return _of_numbers(source, part, channels=channels, name=name, rules=rules)

    def crop(image: Image.Image, units: Units) -> Image.Image:
        box = box_of(_upright_size(image, rules))
        factor = _reduce(image, channels=channels, largest=_spare(box, size=(width, height)))
        check_size(image, rules)
        picture = _decode(image, channels=channels, units=units)
        left, top, right, bottom = (edge / factor for edge in box)
        return resize_crop(picture, (left, top, right, bottom), resolution=resolution)

    return of_picture(source, crop, name=name, rules=rules)


def upright_size(
    source: bytes | str | Path, *, channels: int, name: str | None = None, rules: ReadingRules = _DEFAULT_RULES
) -> tuple[int, int]:
    """Return the (width, height) of the upright picture, from the header alone where that tells them.

    `channels` tells the axes of an array apart.

    Raises:
        UnreadableImage: The file is missing, too large or no image; damage behind the header may pass.
    """
    if rules.reads_numbers:
        return _of_numbers(source, lambda numbers: numbers.size, channels=channels, name=name, rules=rules)

    def size(image: Image.Image, units: Units) -> tuple[int, int]:
        if image.format == "PNG" and "exif" not in image.info:
            return image.size  # an orientation behind the pixels isn't worth decoding them
        return _upright_size(image, rules)

    return of_picture(source, size, name=name, rules=rules)


def of_picture(
    source: bytes | str | Path,
    read: Callable[[Image.Image, Units], T],
    *,
    name: str | None,
    rules: ReadingRules,
) -> T:
    """Open a picture and hand it to `read`."""

    def opened(file: LimitedBytes | LimitedFile) -> T:
        with _open_image(file) as image:
            if image.format == "TIFF":
                silence_libtiff()
            if image.format in _JPEG_FORMATS:
                check_scans(image, file)
            return read(image, stated_units(image, reopen=partial(_reopen, source)))

    return guarded(source, opened, name=name, rules=rules)


def _of_numbers(
    source: bytes | str | Path,
    read: Callable[[Numbers], T],
    *,
    channels: int,
    name: str | None,
    rules: ReadingRules,
) -> T:
    """Open a file of numbers in a declared range and hand it to `read`."""

    def opened(file: LimitedBytes | LimitedFile) -> T:
        path = None if isinstance(source, bytes) else source
        reopen = partial(_reopen, source)
        return read(Numbers(file, path=path, channels=channels, rules=rules, open_picture=_open_image, reopen=reopen))

    return guarded(source, opened, name=name, rules=rules)


def _reopen(source: bytes | str | Path) -> ImageFile:
    image = Image.open(open_content(source), formats=FORMATS)
    assert isinstance(image, ImageFile)
    return image


def _open_image(file: LimitedBytes | LimitedFile) -> ImageFile:
    """Open a picture; a PNG with more text than Pillow takes, such as a prompt's workflow, without the text."""
    try:
        image = Image.open(file, formats=FORMATS)
    except ValueError as error:
        if "MAX_TEXT" not in str(error) and "text memory" not in str(error):
            raise
        file.seek(0)
        image = Image.open(LimitedBytes(without_png_text(file.read())), formats=FORMATS)
    assert isinstance(image, ImageFile)
    return image


def _upright_size(image: Image.Image, rules: ReadingRules) -> tuple[int, int]:
    if image.format not in _JPEG_FORMATS:
        check_size(image, rules)
        image.load()  # which turns a TIFF upright, and may find a PNG's orientation only behind the pixels
    width, height = image.size
    return (height, width) if orientation_of(image) >= 5 else (width, height)


def is_reduced(box: Box, *, size: Size) -> bool:
    """Whether a JPEG of which `box` becomes a picture of (width, height) `size` is decoded at less than its size."""
    return _power_of_two(_spare(box, size=size)) > 1


def _spare(box: Box, *, size: Size) -> float:
    """Return by which factor a JPEG may be reduced before `box` of it is resized to `size`."""
    left, top, right, bottom = box
    return min((right - left) / size[0], (bottom - top) / size[1]) / OVERSAMPLING


def _power_of_two(largest: float) -> int:
    return next((factor for factor in (8, 4, 2) if factor <= largest), 1)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or where the EXIF data are broken."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except BAD_FILE_ERRORS:
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _reduce(image: Image.Image, *, channels: int, largest: float) -> int:
    """Have a JPEG decoded at 1 / factor of its size, and as grey where that is all that's wanted.

    Return the factor: 8, 4, 2 or 1, and at most `largest`.
    """
    if image.format not in _JPEG_FORMATS:
        return 1
    width, height = image.size
    factor = _power_of_two(largest)
    drafted = image.draft("L" if channels == 1 else None, (width // factor, height // factor))
    return 1 if drafted is None else round(width / drafted[1][2])


def _decode(image: Image.Image, *, channels: int, units: Units) -> Image.Image:
    """Return the upright picture in the mode of `channels`."""
    image.load()
    orientation = orientation_of(image)
    picture = to_channels(image, channels=channels, units=units)
    return picture.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else picture
