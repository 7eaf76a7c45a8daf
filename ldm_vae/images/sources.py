"""From what a user names (a folder, files, a hub id) to a data set of undecoded images."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ldm_vae.images.folders import IMAGE_EXTENSIONS, folder_dataset, list_images, split_names, split_paths

_FORMATS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
_ROWS_AT_ONCE = 100  # `datasets` takes a file's first row group otherwise, and fails at one without rows
_HINT = "give a folder of images, parquet or webdataset (tar) files, or the id of a data set on the hub"
_HUB_TIMEOUT_SECONDS = 10


@dataclass(kw_only=True)
class Source:
    """A data set with a column of images. Where these are files here, the column holds paths (as bytes) relative to
    `root`; else `root` is None and the column holds what `datasets.Image(decode=False)` gives."""

    dataset: Dataset | IterableDataset
    image_column: str
    root: str | None
    files: list[str] = field(default_factory=list)
    """Names and sizes of the files that hold the rows, where these are here and the images are not files."""


@dataclass(kw_only=True)
class SourceRequest:
    """What a user asked for; see `open_collection`."""

    source: str
    split: str | None
    default_splits: tuple[str, ...]
    image_column: str | None
    field: str
    streaming: bool

    def error(self, message: str) -> ValueError:
        """Return the error for the user, with the option that gave the source."""
        return ValueError(f"{self.field}: {message}")

    def choose_split(self, splits: Collection[str]) -> str:
        """Return the split to use: the one asked for, the first of the defaults that there is, or the only one."""
        names = ", ".join(sorted(splits))
        if self.split is not None:
            if self.split.partition("[")[0] in splits:
                return self.split
            raise self.error(f"{self.source} has no split {self.split!r}; it has {names}")
        for name in self.default_splits:
            if name in splits:
                return name
        if len(splits) == 1:
            return next(iter(splits))
        raise self.error(f"{self.source} has the splits {names}; choose one by the split option")


def open_source(request: SourceRequest) -> Source:
    """Find and open the data set that is asked for; with `streaming` files and hub come as `IterableDataset`.

    Raises:
        ValueError: There is no such source, it holds no images, or split or column don't fit it.
    """
    path = os.path.expanduser(request.source)
    with _quiet():
        if os.path.isdir(path):
            return _open_folder(path, request)
        files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
        if files:
            return _open_files(files, request)
        if _is_local(path):
            raise request.error(f"{request.source} is neither a folder nor a file here; {_HINT}")
        return _with_undecoded_images(_load_from_hub(request), request)


def _open_folder(path: str, request: SourceRequest) -> Source:
    if any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json")):
        return _with_undecoded_images(_load_saved(path, request), request)
    try:
        images = list_images(path)
    except OSError as error:
        raise request.error(f"{error.filename} can't be listed: {error.strerror}") from error
    if images:
        return _open_images(path, images, request)
    pattern = os.path.join(glob.escape(path), "**", "*")
    files = [file for file in glob.glob(pattern, recursive=True) if file.lower().endswith(tuple(_FORMATS))]
    if not files:
        raise request.error(f"the folder {request.source} holds no image; {_HINT}")
    return _open_files(sorted(files), request)


def _open_images(root: str, images: list[str], request: SourceRequest) -> Source:
    """Open image files, given by their paths relative to `root`."""
    if request.image_column not in (None, "image"):
        raise request.error(f"a folder of images has no column {request.image_column!r}; they are the column 'image'")
    splits = split_paths(images)
    if request.split is not None and "[" in request.split:
        raise request.error(f"a folder of images has no slices of splits such as {request.split!r}")
    split = request.choose_split(splits)
    try:
        dataset = folder_dataset(root, splits, split=split)
    except pa.ArrowException as error:
        raise request.error(f"the metadata in {root} can't be read: {_one_line(error)}") from error
    return Source(dataset=dataset, image_column="image", root=os.path.abspath(root))


def _open_files(files: list[str], request: SourceRequest) -> Source:
    """Open image, parquet, webdataset or arrow files, all of one kind."""
    files = [os.path.abspath(file) for file in files]
    root = os.path.dirname(files[0]) if len(files) == 1 else os.path.commonpath(files)
    if all(file.lower().endswith(IMAGE_EXTENSIONS) for file in files):
        return _open_images(root, [os.path.relpath(file, root).replace(os.sep, "/") for file in files], request)
    endings = sorted({os.path.splitext(file)[1].lower() or "none" for file in files})
    if len(endings) > 1 or endings[0] not in _FORMATS:
        raise request.error(f"{request.source} names files with the endings {', '.join(endings)}; {_HINT}")
    relative = {os.path.relpath(file, root).replace(os.sep, "/"): file for file in files}
    splits = split_paths(list(relative))
    if splits.keys() == {"train"}:
        splits = split_names(list(relative))
    chosen = request.choose_split(splits)
    name = chosen.partition("[")[0]
    options = {"batch_size": _ROWS_AT_ONCE} if endings[0] == ".parquet" else {}
    try:
        dataset = datasets.load_dataset(
            _FORMATS[endings[0]],
            data_files={name: [glob.escape(relative[path]) for path in splits[name]]},
            split=chosen,
            streaming=request.streaming,
            **options,
        )
    except Exception as error:
        raise request.error(f"{request.source} can't be loaded: {_one_line(error)}") from error
    opened = _with_undecoded_images(dataset, request)
    opened.files = [f"{path}, {os.path.getsize(relative[path])} bytes" for path in splits[name]]
    return opened


def _load_saved(path: str, request: SourceRequest) -> Dataset:
    try:
        saved = datasets.load_from_disk(path)
    except Exception as error:
        raise request.error(f"the data set saved in {path} can't be loaded: {_one_line(error)}") from error
    return saved if isinstance(saved, Dataset) else saved[request.choose_split(saved)]


def _is_local(path: str) -> bool:
    """Whether `path` can be no hub id, which is a name or an owner and a name."""
    return path.count("/") > 1 or path.startswith((".", "/")) or any(letter in path for letter in "*?[\\ ")


def _load_from_hub(request: SourceRequest) -> Any:
    source = request.source
    try:
        _reach_hub(source)
        splits = datasets.get_dataset_split_names(source)
    except Exception as error:
        raise request.error(
            f"{source} is neither a folder or file here nor a data set that the hub could give: {_one_line(error)}; "
            f"{_HINT}"
        ) from error
    chosen = request.choose_split(splits)
    try:
        return datasets.load_dataset(source, split=chosen, streaming=request.streaming)
    except Exception as error:
        raise request.error(f"the data set {source} can't be loaded: {_one_line(error)}") from error


def _reach_hub(source: str) -> None:
    """Raise at once where the hub doesn't know or give `source`, for `datasets` would try for half a minute first.

    Nothing is raised where the hub can't be reached but an earlier download is here.
    """
    try:
        HfApi().dataset_info(source, timeout=_HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError as error:
        raise ValueError("there is none of that name, or it is private") from error
    except Exception:
        if not os.path.isdir(os.path.join(datasets.config.HF_DATASETS_CACHE, source.replace("/", "___"))):
            raise


def _with_undecoded_images(dataset: Any, request: SourceRequest) -> Source:
    """Find the image column and leave its images, and those of other columns, undecoded."""
    source, column = request.source, request.image_column
    features = dataset.features if dataset.features is not None else dataset._resolve_features().features
    if column is None:
        images = [name for name, feature in features.items() if _is_image(feature)]
        if len(images) != 1:
            found = f"has the image columns {', '.join(images)}" if images else "has no image column"
            raise request.error(f"{source} {found} (its columns: {', '.join(features)}); name one by image_column")
        column = images[0]
    elif column not in features:
        raise request.error(f"{source} has no column {column!r}; it has {', '.join(features)}")
    dataset = dataset.with_format(None)
    for name, feature in features.items():
        if name == column or isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return Source(dataset=dataset, image_column=column, root=None)


def _is_image(feature: Any) -> bool:
    is_struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return is_struct or isinstance(feature, datasets.Image)


def _one_line(error: BaseException) -> str:
    """Return the first line of what went wrong; of the cause, where `error` says only that something did."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
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
