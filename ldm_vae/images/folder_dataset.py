"""A folder of image files as a data set: a row a picture, with its label, its metadata and its caption."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Value

from ldm_vae.images.cells import CAPTION_FILE
from ldm_vae.images.folders import SPLIT_FOLDERS, Listing
from ldm_vae.images.metadata import read_metadata
from ldm_vae.images.metadata_files import FILE_NAME
from ldm_vae.system.telling import counted

IMAGE = "image"
TEXT = "text"


def folder_dataset(
    listing: Listing, paths: Sequence[str], *, read: Callable[[str], bytes] | None = None
) -> tuple[Dataset, list[str]]:
    """Return a data set of some pictures of a folder, and what is to be told about it.

    Its columns: `image` (the path relative to the root, as bytes, for names in any encoding), `label` (the folder,
    where all pictures of all splits lie in one, one level down), those of metadata files, and the captions' files.

    Args:
        listing: The folder, or what lies at an address.
        paths: The pictures, relative to its root.
        read: Returns the content of a file by its path; without it the root is a folder here.

    Raises:
        MetadataError: Metadata can't be read.
    """
    columns: dict[str, Any] = {IMAGE: pa.array([os.fsencode(path) for path in paths], pa.binary())}
    features = Features({IMAGE: Value("binary")})
    notes: list[str] = []
    class_names, numbers = _labels(listing.images, paths)
    if class_names:
        columns["label"] = pa.array(numbers, pa.int64())
        features["label"] = ClassLabel(names=class_names)
    if listing.metadata:
        metadata = read_metadata(listing.root, listing.metadata, listing.images, wanted=paths, read=read)
        notes += metadata.notes
        for name, values in metadata.columns.items():
            if name not in (FILE_NAME, IMAGE):
                columns[name] = values
                schema = pa.schema([pa.field(name, values.type)])
                features[name] = Features.from_arrow_schema(schema)[name]
    if listing.captions:
        given = sum(path in listing.captions for path in paths)
        if TEXT in columns:
            notes.append(
                f"left out {counted(len(listing.captions), 'caption')} in files of their own: the metadata hold `text`"
            )
        else:
            files = [listing.captions.get(path) for path in paths]
            columns[CAPTION_FILE] = pa.array(
                [None if file is None else os.fsencode(file) for file in files], pa.binary()
            )
            features[CAPTION_FILE] = Value("binary")
            if given < len(paths):
                notes.append(f"pictures without a caption beside them: {len(paths) - given:,} of {len(paths):,}")
    return Dataset.from_dict(columns, features=features), notes


def _labels(images: Sequence[str], paths: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the names of the classes and the class of each of `paths`; no names where the folders aren't classes."""
    parts = [path.split("/") for path in images]
    depth = 2 if {part[0] for part in parts} <= SPLIT_FOLDERS.keys() else 1
    if not all(len(part) == depth + 1 for part in parts):
        return [], []
    names = sorted({part[depth - 1] for part in parts})
    numbers = {name: number for number, name in enumerate(names)}
    shown = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
    return shown, [numbers[path.split("/")[depth - 1]] for path in paths]
