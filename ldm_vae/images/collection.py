"""A collection of images with random access, none decoded before it is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Unpack

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.bands import Picture
from ldm_vae.images.cells import Stored, label_column
from ldm_vae.images.decoding import decode_image, read_crop, upright_size
from ldm_vae.images.guard import UnreadableImage, open_regular
from ldm_vae.images.request import Source, SourceOptions, source_request
from ldm_vae.images.sources import open_source
from ldm_vae.images.transforms import Box

_NAMES_AT_ONCE = 10_000


def open_collection(source: str, **options: Unpack[SourceOptions]) -> ImageCollection:
    """Open a folder of images, parquet or webdataset files, what `Dataset.save_to_disk` wrote, or a hub's data set.

    Parquet and webdataset files are named by their folder, by a pattern or one by one. A folder's images are sorted by
    path. Where all of them lie in folders one level down, these are the labels. Where all top folders are called
    train, validation or test (or a usual short form), these are the splits. What is left out or assumed is told on
    stderr.

    Args:
        source: Path, glob or hub id.
        options: See `SourceOptions`.

    Raises:
        ValueError: There is no such source, it holds no images, or split or column don't fit it.
    """
    request = source_request(source, streaming=False, **options)
    opened = open_source(request)
    if len(opened.dataset) == 0:
        raise request.error(f"{request.shown} holds no image")
    return ImageCollection(opened)


class ImageCollection:
    """Images by number, with whatever else the data set knows of each. Can be pickled, for data workers."""

    noun: ClassVar[str] = "image"
    """What messages call each of them."""

    def __init__(self, source: Source) -> None:
        assert isinstance(source.dataset, Dataset)
        column = source.image_column
        self._reader = source.cells
        self._files = source.files
        self._cells = source.dataset.select_columns([column])
        self._rows = source.dataset.remove_columns([column])
        self._image_column = column
        self.columns: list[str] = list(self._rows.column_names)
        """Names of the data set's columns but for the images."""
        self.label_column = label_column(self._rows.features)
        """The column that `label` reads: `label`, `labels` or `cls` with whole numbers, else the only class column."""

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def features(self) -> Mapping[str, Any]:
        """What the data set says of the columns but for the images, by name."""
        return self._rows.features

    @property
    def label_names(self) -> list[str] | None:
        """The classes' names by number, where the data set knows them."""
        return self.class_names(self.label_column)

    def class_names(self, column: str | None) -> list[str] | None:
        """Return the names, by number, of a column's classes; None where the data set knows of none."""
        feature = self._rows.features.get(column)
        return list(feature.names) if isinstance(feature, ClassLabel) else None

    def name(self, i: int) -> str:
        """What to call image i: its path relative to the folder, the path in the data set, or its row."""
        return self._reader.name(self._cell(i), row=i)

    def names(self, start: int, stop: int) -> list[str]:
        """`name` of the images start to stop - 1, at once, without reading images that the data set itself holds."""
        column = self._cells.with_format("arrow")[start:stop][self._image_column]
        if self._reader.root is not None:
            cells = column.to_pylist()
        else:
            cells = [{"path": path} for path in pc.struct_field(column, "path").to_pylist()]
        return [self._reader.name(cell, row=i) for i, cell in enumerate(cells, start)]

    def names_digest(self) -> str:
        """SHA-256, in hexadecimal, of all images' names in order."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _NAMES_AT_ONCE):
            for name in self.names(start, min(start + _NAMES_AT_ONCE, len(self))):
                digest.update(name.encode(errors="backslashreplace") + b"\0")
        return digest.hexdigest()

    def data_names(self) -> Iterator[str]:
        """Yield what tells this collection from another, in its order.

        For images that are files: their names. For others: what their rows are kept in, such as names and sizes of
        files, and the number of rows.
        """
        if self._files:
            yield from self._files
            yield f"{len(self)} rows"
            return
        for start in range(0, len(self), _NAMES_AT_ONCE):
            yield from self.names(start, min(start + _NAMES_AT_ONCE, len(self)))

    def row(self, i: int) -> dict[str, Any]:
        """The other columns of image i, as plain Python values."""
        return self._reader.columns(self._rows[i]) if self.columns else {}

    def label(self, i: int) -> int | None:
        """The class of image i; None where it has none."""
        value = None if self.label_column is None else self._rows[i][self.label_column]
        return None if value is None else int(value)

    def source_stat(self, i: int) -> tuple[int, int] | None:
        """Size in bytes and time of the last change in ns, where image i is a file here that can be found."""
        path = self._reader.file(self._cell(i))
        try:
            status = os.stat(path) if path is not None else None
        except OSError:
            return None
        return None if status is None else (status.st_size, status.st_mtime_ns)

    def content_digest(self, i: int) -> str | None:
        """SHA-256 of image i as it is stored, in hexadecimal; None where it can't be read."""
        try:
            content = self._reader.content(self._cell(i), row=i)
            if isinstance(content, bytes):
                return hashlib.sha256(content).hexdigest()
            with open_regular(content) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, UnreadableImage):
            return None

    @property
    def rules(self) -> ReadingRules:
        """What may be read, and as what."""
        return self._reader.rules

    def size(self, i: int, *, channels: int) -> tuple[int, int]:
        """Return the (width, height) of image i, upright, from its header; `channels` tells an array's axes apart.

        Raises:
            UnreadableImage: See `decoding.upright_size`.
        """
        return upright_size(**self.stored(i), channels=channels)

    def read(self, i: int, *, channels: int) -> Picture:
        """Return the whole of image i, upright, in mode L, RGB or RGBA for 1, 3 or 4 channels, or as numbers.

        Raises:
            UnreadableImage: See `decode_image`.
        """
        return decode_image(**self.stored(i), channels=channels)

    def read_crop(
        self, i: int, *, channels: int, resolution: int | tuple[int, int], box_of: Callable[[tuple[int, int]], Box]
    ) -> Picture:
        """Return the part `box_of(size)` of image i, resized to `resolution` pixels; see `decoding.read_crop`.

        Raises:
            UnreadableImage: See `decode_image`.
        """
        return read_crop(**self.stored(i), channels=channels, resolution=resolution, box_of=box_of)

    def stored(self, i: int) -> Stored:
        """Return image i as the decoder's functions take it.

        Raises:
            UnreadableImage: It can't be fetched, or lies where nothing is read.
        """
        return self._reader.stored(self._cell(i), row=i)

    def _cell(self, i: int) -> Any:
        return self._cells[i][self._image_column]
