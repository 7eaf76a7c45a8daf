"""What a picture may cost: pixels, scans and seconds, so that a bad one is skipped instead of ending the run."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import time
from pathlib import Path

from PIL import Image

from ldm_vae.config.reading import ReadingRules

_MOST_SCANS = 100
"""Most scans of a JPEG. Photographs have about ten; each costs as much as decoding the whole picture."""
_SCAN = b"\xff\xda"


class _Limited:
    """Ends reading once its thread has used the seconds of a processor that a picture may take."""

    _deadline = float("inf")
    _seconds = float("inf")

    def begin(self, rules: ReadingRules) -> None:
        """Count from now on."""
        self._seconds = rules.max_decode_seconds
        self._deadline = time.thread_time() + self._seconds

    def check(self) -> None:
        """Raise `ValueError` where the seconds are used up."""
        if time.thread_time() > self._deadline:
            raise ValueError(f"decoding it takes more than max_decode_seconds, which is {self._seconds:g}")


class LimitedBytes(io.BytesIO, _Limited):
    """A file in memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, if there is time left."""
        self.check()
        return super().read(size)


class LimitedFile(io.BufferedReader, _Limited):
    """A file."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(
            io.FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)))
        )

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, if there is time left."""
        self.check()
        return super().read(size)


def check_size(image: Image.Image, rules: ReadingRules) -> None:
    """Raise `ValueError` where an opened picture, at the size it is to be decoded at, has too many pixels."""
    width, height = image.size
    if width * height > rules.max_pixels:
        raise ValueError(f"its {width}x{height} pixels are more than max_pixels, which is {rules.max_pixels}")


def raise_pillows_limit(rules: ReadingRules) -> None:
    """Let Pillow open what the rules allow; it refuses what has twice as many pixels as its own limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and rules.max_pixels > 2 * limit:
        Image.MAX_IMAGE_PIXELS = rules.max_pixels


def check_scans(image: Image.Image, file: LimitedBytes | LimitedFile) -> None:
    """Raise `ValueError` where a JPEG that was just opened has absurdly many scans.

    Only those are counted that may have several: progressive ones, and those whose first scan lacks components.
    """
    if not image.info.get("progressive") and _first_scan_is_whole(image, file):
        return
    file.seek(0)
    scans = file.read().count(_SCAN)
    if scans > _MOST_SCANS:
        raise ValueError(f"it is a JPEG of {scans} scans, and more than {_MOST_SCANS} are not decoded")


def _first_scan_is_whole(image: Image.Image, file: LimitedBytes | LimitedFile) -> bool:
    """Whether the header of a scan that Pillow has just read names all components, as it does in most files."""
    components = getattr(image, "layers", 0)
    length = 6 + 2 * components
    file.seek(max(0, file.tell() - length - len(_SCAN)))
    return file.read(5) == _SCAN + bytes([0, length, components])


def without_png_text(content: bytes) -> bytes:
    """Return a PNG without its chunks of text."""
    kept, at = [content[:8]], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big") + 12
        if content[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(content[at : at + size])
        at += size
    return b"".join(kept)


@functools.cache
def silence_libtiff() -> None:
    """Keep libtiff from writing lines to stderr that don't say which picture they are about.

    What makes a picture unreadable is raised by Pillow anyway.
    """
    with contextlib.suppress(OSError, AttributeError):
        maps = Path("/proc/self/maps").read_text(errors="replace")
        paths = {
            line.split(maxsplit=5)[5] for line in maps.splitlines() if "libtiff" in line and len(line.split()) > 5
        }
        for path in paths:
            library = ctypes.CDLL(path)
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                handler = getattr(library, name)
                handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                handler(None)
