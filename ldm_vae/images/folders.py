"""Folders of image files: which images there are, in which splits and classes, listed in one sorted walk.

`datasets`' own imagefolder isn't used: it takes file names with the word "test" in them for a split of their own.
"""

from __future__ import annotations

import os
import re

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


def split_paths(paths: list[str]) -> dict[str, list[str]]:
    """Return the files of each split: by the folder at the top, where there are only such of `SPLIT_FOLDERS`, else
    all as `train`."""
    return _split({path: path.partition("/")[0] if "/" in path else "" for path in paths})


def split_names(paths: list[str]) -> dict[str, list[str]]:
    """Return the files of each split: by the first word of their names (train-00000-of-00002.parquet), where there
    are only such of `SPLIT_FOLDERS`, else all as `train`."""
    return _split({path: re.split(r"[-_.]", os.path.basename(path))[0] for path in paths})


def _split(words: dict[str, str]) -> dict[str, list[str]]:
    if not SPLIT_FOLDERS.keys() >= set(words.values()):
        return {"train": list(words)}
    splits: dict[str, list[str]] = {}
    for path, word in words.items():
        splits.setdefault(SPLIT_FOLDERS[word], []).append(path)
    return splits


def folder_dataset(root: str, splits: dict[str, list[str]], *, split: str) -> Dataset:
    """Return a data set of one split of the image files below `root`.

    Its columns: `image` (the path relative to root, as bytes, for names in any encoding), `label` (the folder, where
    all images of all splits lie in one, one level down), and those of a metadata.csv, .jsonl or .parquet beside the
    images or the splits, whose column file_name names the image.

    Raises:
        pa.ArrowException: The metadata can't be read.
    """
    paths = splits[split]
    files = pa.array([os.fsencode(path) for path in paths], pa.binary())
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"image": files}
    features = Features({"image": Value("binary")})
    parts = [path.split("/") for images in splits.values() for path in images]
    tops = {part[0] for part in parts}
    depth = 2 if tops <= SPLIT_FOLDERS.keys() else 1
    if all(len(part) == depth + 1 for part in parts):
        class_names = sorted({part[depth - 1] for part in parts})
        numbers = {name: number for number, name in enumerate(class_names)}
        columns["label"] = pa.array([numbers[path.split("/")[depth - 1]] for path in paths], pa.int64())
        features["label"] = ClassLabel(names=[printable(os.fsencode(name)) for name in class_names])
    metadata = _read_metadata(root, folders=["", *sorted(tops & SPLIT_FOLDERS.keys())])
    if metadata is not None:
        rows = pc.index_in(files, value_set=metadata["file_name"].combine_chunks())
        for name in metadata.column_names:
            if name not in ("file_name", "image"):
                columns[name] = metadata[name].take(rows)
                features[name] = Features.from_arrow_schema(metadata.select([name]).schema)[name]
    return Dataset.from_dict(columns, features=features)


def printable(name: bytes) -> str:
    """Return a file's name as text, what is no UTF-8 as escapes."""
    return name.decode("utf-8", "backslashreplace")


def _read_metadata(root: str, *, folders: list[str]) -> pa.Table | None:
    """Return the metadata of some folders below `root`, file_name being relative to it, as bytes."""
    readers = {"csv": pa.csv.read_csv, "jsonl": pa.json.read_json, "parquet": pa.parquet.read_table}
    tables = []
    for folder in folders:
        for ending, read in readers.items():
            path = os.path.join(root, folder, f"metadata.{ending}")
            table = read(path) if os.path.isfile(path) else None
            if table is not None and "file_name" in table.column_names:
                prefix = os.fsencode(folder + "/" if folder else "")
                names = pc.binary_join_element_wise(prefix, table["file_name"].cast(pa.binary()), b"")
                tables.append(table.drop_columns("file_name").append_column("file_name", names))
    return pa.concat_tables(tables, promote_options="permissive") if tables else None
