"""Files of strangers, opened and read so that a bad one is one error that names it, or one that was skipped."""

from __future__ import annotations

import errno
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.limits import LimitedBytes, LimitedFile, raise_pillows_limit
from ldm_vae.system.text import one_line, printable
from ldm_vae.system.watch import at_work, refusal

T = TypeVar("T")

BAD_FILE_ERRORS = (  # what Pillow and numpy raise at bad files, by their sources and by fuzzing
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
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)

_MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening a file that aren't the file's fault."""


class UnreadableImage(ValueError):
    """An image that can't be read: `name` says which, `reason` why, in one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"the image {printable(self.name)} can't be read: {self.reason}"


@dataclass(kw_only=True, frozen=True)
class SkippedImage:
    """An image that could not be read."""

    index: int
    """Number of the image in the collection; of a stream, among the images that its process reads."""
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.name)} ({printable(self.reason)})"


def open_regular(path: str | Path) -> LimitedFile:
    """Open a file for reading, whatever it is called.

    Raises:
        OSError: It can't be opened, or is a folder, a pipe, a socket or a device, which may never end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened, for opening a device may do something
        raise OSError(f"it is {'a folder' if os.path.isdir(path) else 'no regular file'}")
    return LimitedFile(path)


def open_content(source: bytes | str | Path) -> LimitedBytes | LimitedFile:
    """Open a file, or what a file holds."""
    return LimitedBytes(source) if isinstance(source, bytes) else open_regular(source)


def guarded(
    source: bytes | str | Path,
    read: Callable[[LimitedBytes | LimitedFile], T],
    *,
    name: str | None,
    rules: ReadingRules,
) -> T:
    """Open `source`, hand it to `read`, and turn what is raised at bad files into `UnreadableImage`."""
    if name is None:
        name = f"of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    refused = refusal(name)
    if refused is not None:
        raise UnreadableImage(name, refused)
    try:
        raise_pillows_limit(rules)
        with at_work(name, seconds=rules.max_decode_seconds), warnings.catch_warnings(), open_content(source) as file:
            warnings.simplefilter("ignore")  # Pillow's, on odd metadata and large pictures
            file.begin(rules)
            return read(file)
    except BAD_FILE_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            raise
        raise UnreadableImage(name, _reason(error, source, rules)) from error


def _reason(error: Exception, source: bytes | str | Path, rules: ReadingRules) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"its header claims more pixels than max_pixels, which is {rules.max_pixels}"
    if isinstance(error, UnidentifiedImageError):
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        return "it is empty" if size == 0 else "it is in no format that is read here"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    return one_line(error)
