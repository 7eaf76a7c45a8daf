"""Files whose numbers are read as they are stored, into a range that the user declares: nothing is guessed of them."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL.ImageFile import ImageFile

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.bands import Bands, in_range, needed_part
from ldm_vae.images.formats import ARRAY_EXTRA
from ldm_vae.images.limits import LimitedBytes, LimitedFile
from ldm_vae.images.pixels import stated_units
from ldm_vae.images.transforms import Box

_NUMPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274  # a tag of TIFF, and of EXIF
_NUMBER_MODES = ("L", "I", "F", "RGB", "RGBA", "LA", "CMYK")
"""Modes of Pillow in which pixels are the file's own numbers; to them come those that begin with I;16."""
_VALUES_OF_A_PIXEL = 4


class Numbers:
    """A file's numbers as an array [H, W, C], decoded when they are asked for; width and height are known before.

    Args:
        file: The file.
        path: Where it is; None for content in memory.
        channels: Channels that the picture is to have.
        rules: Its range, and what it may cost.
        open_picture: Opens a file that Pillow reads.
        reopen: Opens it again.

    Raises:
        ValueError: The file isn't such an array.
    """

    def __init__(
        self,
        file: LimitedBytes | LimitedFile,
        *,
        path: str | Path | None,
        channels: int,
        rules: ReadingRules,
        open_picture: Callable[[LimitedBytes | LimitedFile], ImageFile],
        reopen: Callable[[], ImageFile],
    ) -> None:
        self._channels, self._rules = channels, rules
        head = file.read(8)
        file.seek(0)
        if head.startswith(_NUMPY):
            shape, self._values = self._of_array(file, path)
        elif head.startswith(_ZIP):
            shape, self._values = self._of_archive(file)
        elif head.startswith(_TIFF):
            shape, self._values = self._of_tiff(file)
        else:
            shape, self._values = self._of_picture(open_picture(file), reopen)
        self.size = shape[1], shape[0]
        """(width, height) in pixels."""

    def whole(self) -> Bands:
        """Return the whole picture."""
        return self._in_range(self._values())

    def part(self, box: Box, *, size: tuple[int, int]) -> Bands:
        """Return a part of the picture, resized to (width, height); no more is read of it than that takes."""
        left, top, right, bottom = needed_part(self.size, box, size)
        bands = self._in_range(self._values()[top:bottom, left:right])
        return bands.resized(size, (box[0] - left, box[1] - top, box[2] - left, box[3] - top))

    def _in_range(self, values: np.ndarray) -> Bands:
        return in_range(values, value_range=self._rules.value_range, clip=self._rules.clip_values)

    def _check(self, shape: tuple[int, int, int], dtype: np.dtype | None) -> tuple[int, int, int]:
        height, width, channels = shape
        if channels != self._channels:
            raise ValueError(f"it has {channels} channels, and {self._channels} are wanted")
        if dtype is not None and dtype.kind not in "uif":
            raise ValueError(f"its values are of type {dtype}, which are no real numbers")
        if width == 0 or height == 0:
            raise ValueError(f"it has {width}x{height} pixels")
        if width * height * max(1, channels / _VALUES_OF_A_PIXEL) > self._rules.max_pixels:
            raise ValueError(
                f"its {width}x{height} pixels of {channels} channels are more than max_pixels, which is "
                f"{self._rules.max_pixels}"
            )
        return shape

    def _of_array(
        self, file: LimitedBytes | LimitedFile, path: str | Path | None
    ) -> tuple[tuple[int, int, int], Callable[[], np.ndarray]]:
        stored, dtype = _header(file)
        layout = self._layout(stored)
        shape = self._check(_laid_out(stored, layout), dtype)
        file.seek(0)

        def values() -> np.ndarray:
            if path is not None:
                return _rows(np.load(path, mmap_mode="r", allow_pickle=False), layout)
            return _rows(np.lib.format.read_array(file, allow_pickle=False), layout)

        return shape, values

    def _of_archive(self, file: LimitedBytes | LimitedFile) -> tuple[tuple[int, int, int], Callable[[], np.ndarray]]:
        archive = zipfile.ZipFile(file)
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        name = "image" if "image" in names else names[0] if len(names) == 1 else None
        if name is None:
            raise ValueError(f"it holds the arrays {', '.join(names) or 'none'}; one must be alone, or called image")

        def member() -> IO[bytes]:
            return archive.open(f"{name}.npy")

        with member() as opened:
            stored, dtype = _header(opened)
        layout = self._layout(stored)

        def values() -> np.ndarray:
            with member() as opened:
                return _rows(np.lib.format.read_array(opened, allow_pickle=False), layout)

        return self._check(_laid_out(stored, layout), dtype), values

    def _layout(self, stored: tuple[int, ...]) -> str:
        """Return which axes of a stored array are rows, columns and channels, by the number of channels alone."""
        if len(stored) == 2:
            return "HW"
        if len(stored) != 3:
            raise ValueError(f"its array has {len(stored)} axes; a picture has rows, columns and perhaps channels")
        first, last = stored[0] == self._channels, stored[2] == self._channels
        if first and last:
            raise ValueError(f"its array is of {_shown(stored)}, so its first or its last axis may be the channels")
        if not first and not last:
            raise ValueError(f"its array is of {_shown(stored)}, and {self._channels} channels are wanted")
        return "CHW" if first else "HWC"

    def _of_tiff(self, file: LimitedBytes | LimitedFile) -> tuple[tuple[int, int, int], Callable[[], np.ndarray]]:
        try:
            import tifffile
        except ImportError:
            raise ValueError(f"it is a TIFF, of whose numbers {ARRAY_EXTRA}") from None
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs at bad files, it raises
        try:
            tiff: Any = tifffile.TiffFile(file, name="image")  # an opened file has a number for its name
            pages = [tiff.pages[0]]
            if pages[0].samplesperpixel == 1 and self._channels > 1 and len(tiff.pages) == self._channels:
                pages = [tiff.pages[number] for number in range(self._channels)]
        except tifffile.TiffFileError as error:
            raise ValueError(str(error)) from None
        kinds = {(page.imagelength, page.imagewidth, page.samplesperpixel, str(page.dtype)) for page in pages}
        if len(kinds) > 1:
            raise ValueError(f"its {len(pages)} pages, which would be its channels, are of several sizes or types")
        page, many = pages[0], len(pages) > 1
        if page.dtype is None or page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError("it is a TIFF whose pixels aren't rows of numbers")
        orientation = page.tags.valueof(_ORIENTATION, 1)
        turned = orientation in range(5, 9)
        sides = (page.imagewidth, page.imagelength) if turned else (page.imagelength, page.imagewidth)
        shape = self._check((*sides, len(pages) if many else page.samplesperpixel), page.dtype)

        def values() -> np.ndarray:
            layout = {"YX": "HW", "YXS": "HWC", "SYX": "CHW"}[page.axes]
            arrays = [_rows(each.asarray(maxworkers=1), layout) for each in pages]
            return _upright(np.concatenate(arrays, axis=-1), int(orientation))

        return shape, values

    def _of_picture(
        self, image: ImageFile, reopen: Callable[[], ImageFile]
    ) -> tuple[tuple[int, int, int], Callable[[], np.ndarray]]:
        units = stated_units(image, reopen=reopen)
        if not (image.mode in _NUMBER_MODES or image.mode.startswith("I;16")) or units.bits < 8:
            bits = f" of {units.bits} bits" if units.bits < 8 else ""
            raise ValueError(f"its pixels (mode {image.mode}{bits}) aren't stored as the numbers of its channels")
        height, width, channels = self._check((image.height, image.width, len(image.getbands())), None)
        image.load()  # which may find the orientation only behind the pixels
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        sides = (width, height) if orientation in range(5, 9) else (height, width)

        def values() -> np.ndarray:
            numbers = np.atleast_3d(np.asarray(image))
            if units.low_bytes is not None:
                numbers = numbers.astype(np.uint16) * 256 + np.asarray(units.low_bytes())
            return _upright(numbers, orientation)

        return (*sides, channels), values


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of an array in numpy's format."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its array is of version {version[0]}.{version[1]} of numpy's format, which is for records")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def _laid_out(stored: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    sizes = dict(zip(layout, stored, strict=True)) | ({"C": 1} if layout == "HW" else {})
    return sizes["H"], sizes["W"], sizes["C"]


def _rows(array: np.ndarray, layout: str) -> np.ndarray:
    """Return an array as [H, W, C]."""
    return array[..., None] if layout == "HW" else array.transpose(1, 2, 0) if layout == "CHW" else array


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels [H, W, C] as an EXIF orientation says."""
    if orientation in range(5, 9):
        values = values.swapaxes(0, 1)
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return values[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
