"""What commands wrote, read back for a page: JSON that may be damaged, pictures that may be anything."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm_vae.config.rules import FieldError
from ldm_vae.system.paths import inside
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

_FORMATS = {"PNG": "image/png", "WEBP": "image/webp"}
_GAP = 1
"""Pixels between the parts of a sheet."""
_LARGEST = 64 * 1024**2
"""Bytes of a picture's file; a larger one isn't what any command wrote."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture within the page."""

    uri: str
    """The file itself, as `data:`."""
    width: int
    height: int


@contextmanager
def as_written(file: Path, *, by: str) -> Iterator[None]:
    """Turn what goes wrong with a file's content into one line that names it.

    Args:
        file: The file whose content is looked at.
        by: The command that writes such files.

    Raises:
        FieldError: In place of the errors that missing keys and other types give.
    """
    try:
        yield
    except OSError as error:
        raise FieldError(f"<outputs>: {printable(str(file))} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, FieldError):
            raise
        raise FieldError(f"<outputs>: {printable(str(file))} isn't as `ldm-vae {by}` writes it") from None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; a last line that was never finished is left out.

    Raises:
        ValueError: Another line is no JSON, or none of an object.
    """
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    objects = [json.loads(line) for line in lines]
    if not all(isinstance(each, dict) for each in objects):
        raise ValueError(f"{file} holds other things than objects")
    return objects


def read_picture(folder: Path, name: str) -> Picture | None:
    """Return the picture `name` in a folder; None where there is none, or where it is no PNG or WebP."""
    content = _read_image(folder, name)
    if content is None:
        return None
    data, image = content
    return Picture(uri=_uri(data, _FORMATS[str(image.format)]), width=image.width, height=image.height)


def read_strip(folder: Path, name: str, *, count: int) -> list[Picture]:
    """Return the `count` equal parts of a picture that holds them beside each other; none where it can't be read."""
    return [_as_png(part) for part in _strip_parts(folder, name, count=count)]


def read_sheet(folder: Path, name: str, *, count: int, columns: int) -> Picture | None:
    """Return the `count` equal parts of such a picture in rows of `columns`; None where it can't be read."""
    parts = _strip_parts(folder, name, count=count)
    if not parts:
        return None
    width, height = (side + _GAP for side in parts[0].size)
    size = (min(count, columns) * width - _GAP, -(-count // columns) * height - _GAP)
    sheet = Image.new("RGBA", size)  # transparent between the parts, and behind the last row
    for number, part in enumerate(parts):
        sheet.paste(part.convert("RGBA"), (number % columns * width, number // columns * height))
    return _as_png(sheet)


def told_lost(count: int) -> list[str]:
    """Return what the reader has to know of picture files that can't be read."""
    return [f"{counted(count, 'picture file')} {'is' if count == 1 else 'are'} missing or damaged."] if count else []


def number_of(value: Any) -> float:
    """Return a figure that was read as JSON: NaN for null, which stands for what isn't finite, and for words."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _strip_parts(folder: Path, name: str, *, count: int) -> list[Image.Image]:
    """Return the equal parts of a picture that holds them beside each other; none where it can't be read."""
    content = _read_image(folder, name)
    if content is None or count < 1 or content[1].width % count:
        return []
    _, image = content
    width = image.width // count
    return [image.crop((number * width, 0, (number + 1) * width, image.height)) for number in range(count)]


def _as_png(image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return Picture(uri=_uri(buffer.getvalue(), "image/png"), width=image.width, height=image.height)


def _read_image(folder: Path, name: str) -> tuple[bytes, Image.Image] | None:
    try:
        path = inside(folder, name)
        if path.stat().st_size > _LARGEST:
            return None
        data = path.read_bytes()
        image = Image.open(io.BytesIO(data), formats=list(_FORMATS))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return data, image


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
