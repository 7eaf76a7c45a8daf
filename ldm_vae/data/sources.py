"""From what a user names (a folder, files, a hub id) to a data set of undecoded images."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset

from ldm_vae.data.folders import IMAGE_EXTENSIONS, class_folders, folder_dataset, list_images, split_images

_FORMATS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
_HINT = "give a folder of images, parquet or webdataset (tar) files, or the id of a data set on the hub"


@dataclass(kw_only=True)
class Source:
    """A data set with an image column. `root` is the folder that the column's paths are relative to, where the images
    are files; None where the column holds the images themselves."""

    dataset: Dataset | IterableDataset
    image_column: str
    root: str | None


def open_source(
    source: str,
    *,
    split: str | None,
    default_splits: tuple[str, ...],
    image_column: str | None,
    field: str,
    streaming: bool,
) -> Source:
    """Find and open the data set that `source` names; `streaming` gives hub and file sources as `IterableDataset`.

    Raises:
        ValueError: There is no such source, it holds no images, or split or column don't fit it.
    """
    path = os.path.expanduser(source)
    matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    with _quiet():
        if os.path.isdir(path) and _is_saved_dataset(path):
            dataset = _open_saved(path, split=split, default_splits=default_splits, field=field)
        elif os.path.isdir(path):
            images = _list(path, field=field)
            if images:
                return _open_images(path, images, split, default_splits, image_column, field)
            files = _data_files(path)
            if not files:
                raise ValueError(f"{field}: the folder {source} holds no image; {_HINT}")
            dataset = _load(path, files, split, default_splits, field, streaming)
        elif matches:
            images = [match for match in matches if match.lower().endswith(IMAGE_EXTENSIONS)]
            if len(images) == len(matches):
                root = os.path.abspath(os.path.dirname(images[0]) if len(images) == 1 else os.path.commonpath(images))
                images = [os.path.relpath(image, root) for image in images]
                return _open_images(root, images, split, default_splits, image_column, field)
            dataset = _load(source, matches, split, default_splits, field, streaming)
        elif _is_local(path):
            raise ValueError(f"{field}: {source} is neither a folder nor a file here; {_HINT}")
        else:
            dataset = _load_from_hub(source, split, default_splits, field, streaming)
    column, dataset = _undecoded(dataset, image_column, source=source, field=field)
    return Source(dataset=dataset, image_column=column, root=None)


def _open_images(
    root: str,
    images: list[str],
    split: str | None,
    default_splits: tuple[str, ...],
    image_column: str | None,
    field: str,
) -> Source:
    if image_column not in (None, "image"):
        raise ValueError(
            f"{field}: there is no column {image_column!r}; the images of a folder are the column 'image'"
        )
    splits = split_images(images)
    chosen = choose_split(splits, split=split, default_splits=default_splits, source=root, field=field)
    is_split = all(image.count("/") > 0 for image in images) and splits.keys() != {"train"}
    class_names = class_folders(images, depth=2 if is_split else 1)
    dataset = folder_dataset(root, splits[chosen], class_names=class_names)
    return Source(dataset=dataset, image_column="image", root=os.path.abspath(root))


def choose_split(
    splits: Collection[str], *, split: str | None, default_splits: tuple[str, ...], source: str, field: str
) -> str:
    """Return the split to use: the one asked for, the first of the defaults that there is, or the only one."""
    if split is not None:
        if split.partition("[")[0] in splits:
            return split
        raise ValueError(f"{field}: {source} has no split {split!r}; it has {', '.join(sorted(splits))}")
    for name in default_splits:
        if name in splits:
            return name
    if len(splits) == 1:
        return next(iter(splits))
    raise ValueError(f"{field}: {source} has the splits {', '.join(sorted(splits))}; choose one by the split option")


def _list(path: str, *, field: str) -> list[str]:
    try:
        return list_images(path)
    except OSError as error:
        raise ValueError(f"{field}: {error.filename} can't be listed: {error.strerror}") from error


def _is_saved_dataset(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json"))


def _open_saved(path: str, *, split: str | None, default_splits: tuple[str, ...], field: str) -> Dataset:
    try:
        saved = datasets.load_from_disk(path)
    except Exception as error:
        raise ValueError(f"{field}: the data set saved in {path} can't be loaded: {_one_line(error)}") from error
    if isinstance(saved, Dataset):
        return saved
    return saved[choose_split(saved, split=split, default_splits=default_splits, source=path, field=field)]


def _data_files(path: str) -> list[str]:
    """Return the parquet, webdataset and arrow files below a folder, sorted."""
    pattern = os.path.join(glob.escape(path), "**", "*")
    return sorted(file for file in glob.glob(pattern, recursive=True) if file.lower().endswith(tuple(_FORMATS)))


def _load(
    source: str, files: list[str], split: str | None, default_splits: tuple[str, ...], field: str, streaming: bool
) -> Any:
    """Load local parquet, webdataset or arrow files; splits are told by the files' names (train-00000-of-00002)."""
    endings = {os.path.splitext(file)[1].lower() for file in files}
    if len(endings) > 1 or not endings <= _FORMATS.keys():
        raise ValueError(f"{field}: {source} names files of the kinds {', '.join(sorted(endings))}; {_HINT}")
    splits = _split_files(files)
    chosen = choose_split(splits, split=split, default_splits=default_splits, source=source, field=field)
    name = chosen.partition("[")[0]
    data_files = {name: [glob.escape(os.path.abspath(file)) for file in splits[name]]}
    try:
        return datasets.load_dataset(_FORMATS[endings.pop()], data_files=data_files, split=chosen, streaming=streaming)
    except Exception as error:
        raise ValueError(f"{field}: {source} can't be loaded: {_one_line(error)}") from error


def _split_files(files: list[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for file in files:
        word = os.path.basename(file).replace("_", "-").partition("-")[0].lower()
        splits.setdefault(word, []).append(file)
    if not splits.keys() <= {"train", "validation", "test", "val", "valid", "dev"}:
        return {"train": files}
    return splits


def _is_local(path: str) -> bool:
    """Whether `path` can be no hub id, which is a name or an owner and a name."""
    return path.count("/") > 1 or path.startswith((".", "/")) or any(letter in path for letter in "*?[\\ ")


def _load_from_hub(
    source: str, split: str | None, default_splits: tuple[str, ...], field: str, streaming: bool
) -> Any:
    try:
        splits = datasets.get_dataset_split_names(source)
    except Exception as error:
        raise ValueError(
            f"{field}: {source} is neither a folder or file here nor a data set that the hub could give: "
            f"{_one_line(error)}; {_HINT}"
        ) from error
    chosen = choose_split(splits, split=split, default_splits=default_splits, source=source, field=field)
    try:
        return datasets.load_dataset(source, split=chosen, streaming=streaming)
    except Exception as error:
        raise ValueError(f"{field}: the data set {source} can't be loaded: {_one_line(error)}") from error


def _undecoded(dataset: Any, image_column: str | None, *, source: str, field: str) -> tuple[str, Any]:
    """Return the image column's name and the data set with its images as {"bytes", "path"}."""
    features: Features | None = dataset.features or dataset._resolve_features().features
    assert features is not None
    candidates = [name for name, feature in features.items() if _is_image(feature)]
    if image_column is None:
        if len(candidates) != 1:
            found = f"has the image columns {', '.join(candidates)}" if candidates else "has no image column"
            raise ValueError(f"{field}: {source} {found} (columns: {', '.join(features)}); name one by image_column")
        image_column = candidates[0]
    elif image_column not in features:
        raise ValueError(f"{field}: {source} has no column {image_column!r}; it has {', '.join(features)}")
    dataset = dataset.with_format(None)
    for name, feature in features.items():
        if name == image_column or isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return image_column, dataset


def _is_image(feature: Any) -> bool:
    is_struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or is_struct


def _one_line(error: BaseException) -> str:
    """Return the first line of what went wrong, with the cause's where `error` only says that something did."""
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0].strip().rstrip(".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide `datasets`' progress bars."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
