"""The cells of a data set: what a picture is called, where it is, and what else its row says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, TypedDict
from urllib.parse import unquote, urlsplit

from datasets import ClassLabel

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.fetching import FetchError, address_roots, fetch, is_address
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.metadata_files import LABEL_COLUMNS, decode_text
from ldm_vae.system.telling import tell
from ldm_vae.system.text import printable

CAPTION_FILE = "__caption_file__"
"""Column with the path of the caption's file, relative to the root, as bytes; rows show it as the column `text`."""
JSON_COLUMNS = "__json_columns__"
"""Column with further columns as one JSON object."""
_LONGEST_NAME = 1024


class Stored(TypedDict):
    """A picture as it is stored, and what its decoder has to know: arguments of `decode_image` and the like."""

    source: bytes | str
    name: str
    rules: ReadingRules


def label_column(features: Mapping[str, Any]) -> str | None:
    """Return the column that holds the classes.

    It is `label`, `labels` or `cls` where that holds classes or whole numbers, else the only class column there is.
    """
    for name in LABEL_COLUMNS:
        feature = features.get(name)
        if isinstance(feature, ClassLabel) or str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
            return name
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return classes[0] if len(classes) == 1 else None


class Cells:
    """Reads the image cells and the other columns of a data set. Can be pickled, for data workers.

    A cell is a path relative to `root`, as bytes, in a folder of image files; else it is what
    `datasets.Image(decode=False)` gives: {"bytes", "path"}, perhaps with a "reason" why there is no picture.

    Args:
        root: Folder of the image files; None for other data.
        places: Folders that belong to the data. A path in a cell is relative to one of them and stays in it.
        addresses: Beginnings of addresses that belong to the data.
        rules: Whether other paths and addresses are read.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        places: tuple[str, ...] = (),
        addresses: tuple[str, ...] = (),
        rules: ReadingRules | None = None,
    ) -> None:
        self.root = root
        self.rules = rules or ReadingRules()
        self._places = places
        self._real_places = tuple(os.path.realpath(place) for place in places)
        self._addresses = addresses

    def name(self, cell: Any, *, row: int) -> str:
        """Return what to call a picture: its path relative to the folder, its path in the data set, or its row."""
        if isinstance(cell, bytes):
            return cell.decode("utf-8", "backslashreplace")
        path = (cell or {}).get("path")
        return path if path and len(path) <= _LONGEST_NAME else f"row {row}"

    def file(self, cell: Any) -> str | None:
        """Return the path of a picture's file; None where it isn't a file here, or one that may not be read."""
        if self.root is not None:
            return os.path.join(self.root, os.fsdecode(cell))
        path = None if cell is None or cell.get("bytes") is not None else cell.get("path")
        if not path or (is_address(path) and not path.startswith("file:")):
            return None
        try:
            return self._local(path)
        except ValueError:
            return None

    def content(self, cell: Any, *, row: int) -> bytes | str:
        """Return what `decode_image` reads: the path of a file here, or the picture's bytes (none for an empty cell).

        Raises:
            UnreadableImage: The row says why it has no picture, or names one that may not be read or can't be fetched.
        """
        if self.root is not None:
            return os.path.join(self.root, os.fsdecode(cell))
        if cell is None:
            return b""
        if cell.get("reason"):
            raise UnreadableImage(self.name(cell, row=row), cell["reason"])
        if cell.get("bytes") is not None or not cell.get("path"):
            return cell.get("bytes") or b""
        path = cell["path"]
        try:
            if is_address(path) and not path.startswith("file:"):
                return self._remote(path)
            return self._local(path)
        except (ValueError, FetchError) as error:
            raise UnreadableImage(self.name(cell, row=row), str(error)) from error

    def stored(self, cell: Any, *, row: int) -> Stored:
        """Return a picture as the decoder's functions take it.

        Raises:
            UnreadableImage: See `content`.
        """
        return Stored(source=self.content(cell, row=row), name=self.name(cell, row=row), rules=self.rules)

    def _remote(self, path: str) -> bytes:
        """Fetch an address, or raise `ValueError` where it isn't the data's own and that wasn't asked for."""
        roots = address_roots(path)
        own = bool(self._addresses) and all(root.startswith(self._addresses) and "/../" not in root for root in roots)
        if not own and not self.rules.allow_remote:
            raise ValueError("it is an address, and nothing is fetched unless allow_remote is set")
        local = any(not is_address(root) or root.startswith(("file:", "local:")) for root in roots)
        if local and not self.rules.allow_outside:
            raise ValueError("it is an address of a file here, which is read only if allow_outside is set")
        return fetch(path)

    def _local(self, path: str) -> str:
        """Return the path of a cell's file; raise `ValueError` where it lies outside of the data's own folders."""
        if path.startswith("file:"):
            parts = urlsplit(path)
            if parts.netloc not in ("", "localhost"):
                raise ValueError("it is a file of another host")
            path = unquote(parts.path)
        if "\0" in path:
            raise ValueError("its path holds a NUL")
        candidates = [path] if os.path.isabs(path) else [os.path.join(place, path) for place in self._places]
        own = [candidate for candidate in candidates if self._is_own(candidate)]
        existing = next(filter(os.path.exists, own), None)
        if existing is not None:
            return existing
        if self.rules.allow_outside:
            return next(filter(os.path.exists, candidates), path)
        if own:
            return own[0]  # missing, which the decoder says
        raise ValueError("it lies outside of the data's own folder, where files are read only if allow_outside is set")

    def _is_own(self, path: str) -> bool:
        real = os.path.realpath(path)
        return any(real.startswith(place.rstrip(os.sep) + os.sep) for place in self._real_places)

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's other columns, captions read and JSON columns taken apart."""
        values = {name: value for name, value in row.items() if name not in (CAPTION_FILE, JSON_COLUMNS)}
        if row.get(JSON_COLUMNS):
            values |= json.loads(row[JSON_COLUMNS])
        if CAPTION_FILE in row:
            values["text"] = self._caption(row[CAPTION_FILE])
        return values

    def _caption(self, path: bytes | None) -> str | None:
        """Return the text of a caption's file, without the line ends behind it; None where there is none."""
        if path is None or self.root is None:
            return None
        try:
            text, assumed = decode_text(self._caption_content(os.fsdecode(path)))
        except OSError as error:
            tell(f"the caption {printable(os.fsdecode(path))} can't be read: {error.strerror or error}")
            return None
        if assumed is not None:
            tell(f"captions that aren't UTF-8 are taken for {assumed}, such as {printable(os.fsdecode(path))}")
        return text.rstrip("\r\n")

    def _caption_content(self, path: str) -> bytes:
        assert self.root is not None
        with open(os.path.join(self.root, path), "rb") as file:
            return file.read()
