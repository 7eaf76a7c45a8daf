"""Folders of image files: which images there are, in which splits and classes, listed in one sorted walk.

`datasets`' own imagefolder isn't used: it takes file names with the word "test" in them for a split of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Value

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".psd", ".sgi",
)  # fmt: skip
"""Endings, in any case, of what counts as an image file."""

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Folders that are splits, where a folder holds nothing but such, and the splits' names."""


def list_images(root: str) -> list[str]:
    """Return the paths, relative to `root`, of all image files below it, sorted.

    Hidden files and folders are left out; links to folders are followed, but no folder is listed twice.

    Raises:
        OSError: A folder can't be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    paths: list[str] = []
    listed: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in listed:
            folders.clear()
            continue
        listed.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        prefix = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        paths += [prefix + name for name in files if name.lower().endswith(IMAGE_EXTENSIONS) and name[0] != "."]
    return sorted(paths)


def split_images(paths: list[str]) -> dict[str, list[str]]:
    """Return the images of each split: by the folder at the top where each of these is one of `SPLIT_FOLDERS`,
    else all in `train`."""
    tops = {path.partition("/")[0] for path in paths if "/" in path}
    if not tops <= SPLIT_FOLDERS.keys() or any("/" not in path for path in paths):
        return {"train": paths}
    splits: dict[str, list[str]] = {}
    for path in paths:
        splits.setdefault(SPLIT_FOLDERS[path.partition("/")[0]], []).append(path)
    return splits


def folder_dataset(root: str, paths: list[str], *, class_names: list[str] | None) -> Dataset:
    """Return a data set of the image files `paths` below `root`.

    Its columns: `image` (the path relative to root, as bytes, for names in any encoding), `label` where there are
    `class_names`, and those of a metadata.csv, .jsonl or .parquet in root, whose column file_name names the image.
    """
    files = pa.array([os.fsencode(path) for path in paths], pa.binary())
    columns: dict[str, pa.Array] = {"image": files}
    features = Features({"image": Value("binary")})
    if class_names is not None:
        numbers = {name: number for number, name in enumerate(class_names)}
        columns["label"] = pa.array([numbers[path.split("/")[-2]] for path in paths], pa.int64())
        features["label"] = ClassLabel(names=[_printable(name) for name in class_names])
    metadata = _read_metadata(root)
    if metadata is not None:
        rows = pc.index_in(files, value_set=metadata["file_name"].cast(pa.binary()).combine_chunks())
        for name in metadata.column_names:
            if name not in ("file_name", "image"):
                columns[name] = metadata[name].take(rows)
                features[name] = Features.from_arrow_schema(metadata.select([name]).schema)[name]
    return Dataset.from_dict(columns, features=features)


def class_folders(paths: Iterable[str], *, depth: int) -> list[str] | None:
    """Return the sorted names of the folders that hold the images, if each image lies in one, `depth` levels deep."""
    parts = [path.split("/") for path in paths]
    if any(len(part) != depth + 1 for part in parts):
        return None
    return sorted({part[-2] for part in parts})


def _read_metadata(root: str) -> pa.Table | None:
    readers = {"csv": pa.csv.read_csv, "jsonl": pa.json.read_json, "parquet": pa.parquet.read_table}
    for ending, read in readers.items():
        path = Path(root, f"metadata.{ending}")
        if path.is_file():
            table = read(str(path))
            return table if "file_name" in table.column_names else None
    return None


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
