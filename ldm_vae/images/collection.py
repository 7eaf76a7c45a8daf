"""A collection of images with random access, none decoded before it is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features
from datasets.utils.file_utils import xopen
from PIL import Image

from ldm_vae.images.decoding import decode_image, read_crop, upright_size
from ldm_vae.images.folders import printable
from ldm_vae.images.sources import Source, SourceRequest, open_source
from ldm_vae.images.transforms import Box

_NAMES_AT_ONCE = 10_000
LABEL_COLUMNS = ("label", "labels", "cls")


def open_collection(
    source: str,
    *,
    split: str | None = None,
    default_splits: tuple[str, ...] = ("train",),
    image_column: str | None = None,
    field: str = "data",
) -> ImageCollection:
    """Open a folder of images, parquet or webdataset files (a folder, glob or file), what `Dataset.save_to_disk`
    wrote, or a data set of the hub.

    A folder's images are sorted by path. Where all of them lie in folders one level down, these are the labels; where
    all top folders are called train, validation or test (or a usual short form), these are the splits.

    Args:
        source: Path, glob or hub id.
        split: Split to read; None: the first of `default_splits` that there is, else the only one.
        default_splits: Splits to look for where none is named.
        image_column: Column of the images; None: the only image column there is.
        field: What errors call the option that gave `source`.

    Raises:
        ValueError: There is no such source, it holds no images, or split or column don't fit it.
    """
    request = SourceRequest(
        source=source,
        split=split,
        default_splits=default_splits,
        image_column=image_column,
        field=field,
        streaming=False,
    )
    found = open_source(request)
    if len(found.dataset) == 0:
        raise request.error(f"{source} holds no image")
    return ImageCollection(found)


class ImageCollection:
    """Images by number, with whatever else the data set knows of each. Can be pickled, for data workers."""

    def __init__(self, source: Source) -> None:
        assert isinstance(source.dataset, Dataset)
        column = source.image_column
        self._root = source.root
        self._files = source.files
        self._cells = source.dataset.select_columns([column])
        self._rows = source.dataset.remove_columns([column])
        self._image_column = column
        self.columns: list[str] = list(self._rows.column_names)
        """Names of the columns that `row` gives: all but the images."""
        self.label_column = _label_column(self._rows.features)
        """The column that `label` reads: `label`, `labels` or `cls` with whole numbers, else the only class column."""

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def label_names(self) -> list[str] | None:
        """The classes' names by number, where the data set knows them."""
        feature = self._rows.features.get(self.label_column)
        return list(feature.names) if isinstance(feature, ClassLabel) else None

    def name(self, i: int) -> str:
        """What to call image i: its path relative to the folder, the path in the data set, or its row."""
        return cell_name(self._cell(i), row=i)

    def names(self, start: int, stop: int) -> list[str]:
        """`name` of the images start to stop - 1, at once, without reading images that the data set itself holds."""
        column = self._cells.with_format("arrow")[start:stop][self._image_column]
        if self._root is not None:
            cells = column.to_pylist()
        else:
            cells = [{"path": path} for path in pc.struct_field(column, "path").to_pylist()]
        return [cell_name(cell, row=i) for i, cell in enumerate(cells, start)]

    def data_names(self) -> Iterator[str]:
        """Yield what tells this collection from another, in its order.

        For images that are files: their names. For rows of files here: names and sizes of these, and the number of
        rows. Else: the names of the images in the data set, or their rows.
        """
        if self._files:
            yield from self._files
            yield f"{len(self)} rows"
            return
        for start in range(0, len(self), _NAMES_AT_ONCE):
            yield from self.names(start, min(start + _NAMES_AT_ONCE, len(self)))

    def row(self, i: int) -> dict[str, Any]:
        """The other columns of image i, as plain Python values."""
        return dict(self._rows[i]) if self.columns else {}

    def label(self, i: int) -> int | None:
        """The class of image i; None where it has none."""
        value = None if self.label_column is None else self._rows[i][self.label_column]
        return None if value is None else int(value)

    def source_stat(self, i: int) -> tuple[int, int] | None:
        """Size in bytes and time of the last change in ns, where image i is a file here that can be found."""
        path = cell_path(self._cell(i), root=self._root)
        try:
            status = os.stat(path) if path is not None else None
        except OSError:
            return None
        return None if status is None else (status.st_size, status.st_mtime_ns)

    def content_digest(self, i: int) -> str | None:
        """SHA-256 of image i as it is stored, in hexadecimal; None where it can't be read."""
        content = cell_content(self._cell(i), root=self._root)
        try:
            return hashlib.sha256(content if isinstance(content, bytes) else Path(content).read_bytes()).hexdigest()
        except OSError:
            return None

    def size(self, i: int) -> tuple[int, int]:
        """Return the (width, height) of image i, upright, from its header.

        Raises:
            UnreadableImage: See `decoding.upright_size`.
        """
        cell = self._cell(i)
        return upright_size(cell_content(cell, root=self._root), name=cell_name(cell, row=i))

    def read(self, i: int, *, channels: int) -> Image.Image:
        """Return the whole of image i, upright, in mode L, RGB or RGBA for 1, 3 or 4 channels.

        Raises:
            UnreadableImage: See `decode_image`.
        """
        cell = self._cell(i)
        source = cell_content(cell, root=self._root)
        return decode_image(source, channels=channels, name=cell_name(cell, row=i))

    def read_crop(
        self, i: int, *, channels: int, resolution: int | tuple[int, int], box_of: Callable[[tuple[int, int]], Box]
    ) -> Image.Image:
        """Return the part `box_of(size)` of image i, resized to `resolution` pixels; see `decoding.read_crop`.

        Raises:
            UnreadableImage: See `decode_image`.
        """
        cell = self._cell(i)
        source = cell_content(cell, root=self._root)
        name = cell_name(cell, row=i)
        return read_crop(source, channels=channels, resolution=resolution, box_of=box_of, name=name)

    def _cell(self, i: int) -> Any:
        return self._cells[i][self._image_column]


def _label_column(features: Features) -> str | None:
    for name in LABEL_COLUMNS:
        feature = features.get(name)
        if isinstance(feature, ClassLabel) or "int" in str(getattr(feature, "dtype", "")):
            return name
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return classes[0] if len(classes) == 1 else None


def cell_name(cell: Any, *, row: int) -> str:
    """Return what to call the image of a cell (a path in bytes, or what `datasets.Image(decode=False)` gives)."""
    if isinstance(cell, bytes):
        return printable(cell)
    return (cell or {}).get("path") or f"row {row}"


def cell_path(cell: Any, *, root: str | None) -> str | None:
    """Return the path of a cell's file; None where the cell holds the image itself or nothing."""
    if root is not None:
        return os.path.join(root, os.fsdecode(cell))
    return cell["path"] if cell is not None and cell["bytes"] is None else None


def cell_content(cell: Any, *, root: str | None) -> bytes | str:
    """Return what `decode_image` reads: the path of a file here, or the image's bytes (none for an empty cell)."""
    path = cell_path(cell, root=root)
    if path is None:
        return (cell or {}).get("bytes") or b""
    if "://" in path:
        with xopen(path, "rb") as file:
            return file.read()
    return path
