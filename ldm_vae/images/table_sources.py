"""Data sets in files of many images, on the hub, or saved by `datasets`, with their images left undecoded."""

from __future__ import annotations

import glob
import logging
import os
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset, Value
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

from ldm_vae.images.addresses import is_store_address
from ldm_vae.images.cells import JSON_COLUMNS, Cells
from ldm_vae.images.folders import (
    TABLE_FORMATS,
    has_split_folders,
    has_split_names,
    relative_path,
    split_names,
    split_paths,
)
from ldm_vae.images.request import HINT, Source, SourceRequest, one_line
from ldm_vae.images.splits import split_name
from ldm_vae.images.tars import IMAGE, identities, read_samples

_ROWS_AT_ONCE = 100  # `datasets` takes a file's first row group otherwise, and fails at one without rows
_TAR_ROWS_AT_ONCE = 32  # samples in memory while an archive is copied into the cache
_HUB_TIMEOUT_SECONDS = 10
_TAR_FEATURES = Features(
    {
        IMAGE: {"bytes": Value("large_binary"), "path": Value("string"), "reason": Value("string")},
        "label": Value("int64"),
        JSON_COLUMNS: Value("large_string"),
    }
)


def open_tables(root: str, files: list[str], request: SourceRequest) -> Source:
    """Open parquet, webdataset or arrow files, all of one kind."""
    root, files = os.path.abspath(root), [os.path.abspath(file) for file in files]
    relative = {relative_path(file, root): file for file in files}
    sizes = {path: os.path.getsize(file) for path, file in relative.items()}
    return open_listed_tables(root, relative, sizes, request)


def open_listed_tables(root: str, relative: dict[str, str], sizes: dict[str, int], request: SourceRequest) -> Source:
    """Open files, all of one kind, by their paths or addresses under names relative to `root`, with their bytes."""
    paths = list(relative)
    by_folder = has_split_folders(paths)
    splits = split_paths(paths) if by_folder else split_names(paths)
    chosen = request.choose_split(splits, unnamed=not by_folder and not has_split_names(paths))
    name = split_name(chosen)
    used = [relative[path] for path in splits[name]]
    kept = [f"{path}, {sizes[path]} bytes" for path in splits[name]]
    kind = TABLE_FORMATS[os.path.splitext(paths[0])[1].lower()]
    try:
        if kind == "webdataset":
            dataset = _open_tars(used, [sizes[path] for path in splits[name]], request)
        else:
            dataset = _load_files(kind, used, chosen, request)
    except Exception as error:
        raise request.error(f"{request.shown} can't be loaded: {one_line(error)}") from error
    if is_store_address(root):
        cells = Cells(addresses=(f"{root}/",), rules=request.rules)
    else:
        places = tuple(dict.fromkeys([root, *(os.path.dirname(file) for file in used)]))
        cells = Cells(places=places, rules=request.rules)
    if kind != "webdataset":
        return _with_undecoded_images(dataset, request, cells=cells, files=kept)
    if chosen != name:
        if request.streaming:
            raise request.error(f"a stream has no slices of splits such as {request.split!r}")
        dataset = dataset.select(request.slice(chosen, {name: len(dataset)}))
    return Source(dataset=dataset, image_column=IMAGE, cells=cells, files=kept)


def _load_files(kind: str, files: list[str], chosen: str, request: SourceRequest) -> Any:
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # what it logs at bad files, it raises
    options = {"batch_size": _ROWS_AT_ONCE} if kind == "parquet" else {}
    data_files = {split_name(chosen): [glob.escape(file) for file in files]}
    return datasets.load_dataset(kind, data_files=data_files, split=chosen, streaming=request.streaming, **options)


def _open_tars(files: list[str], sizes: list[int], request: SourceRequest) -> Any:
    at_addresses = is_store_address(files[0])
    known = [(file, size, 0) for file, size in zip(files, sizes, strict=True)] if at_addresses else identities(files)
    arguments = {"files": known, "image_field": request.image_column}
    if request.streaming:
        return IterableDataset.from_generator(read_samples, features=_TAR_FEATURES, gen_kwargs=arguments)
    return Dataset.from_generator(
        read_samples, features=_TAR_FEATURES, gen_kwargs=arguments, writer_batch_size=_TAR_ROWS_AT_ONCE
    )


def open_saved(path: str, request: SourceRequest) -> Source:
    """Open what `save_to_disk` wrote: a data set, or one for each split."""
    try:
        saved: Any = datasets.load_from_disk(path)
    except Exception as error:
        raise request.error(f"the data set saved in {request.shown} can't be loaded: {one_line(error)}") from error
    if isinstance(saved, Dataset):
        name = str(saved.split) if saved.split is not None else split_name(request.split or "train")
        if saved.split is None and request.split not in (None, "train"):
            request.tell(f"it knows no splits; {name!r} is all of it")
        saved = {name: saved}
        chosen = request.choose_split(saved, unnamed=True)
    else:
        chosen = request.choose_split(saved)
    dataset = saved[split_name(chosen)]
    kept = [f"{chosen}, {dataset._fingerprint}"]
    if chosen != split_name(chosen):
        dataset = dataset.select(request.slice(chosen, {split_name(chosen): len(dataset)}))
    cells = Cells(places=(os.path.abspath(path),), rules=request.rules)
    return _with_undecoded_images(dataset, request, cells=cells, files=kept)


def open_hub(request: SourceRequest) -> Source:
    """Open a data set of the hub."""
    source = request.source
    try:
        _reach_hub(source)
        splits = datasets.get_dataset_split_names(source)
    except Exception as error:
        raise request.error(
            f"{request.shown} is neither a folder or file here nor a data set that the hub could give: "
            f"{one_line(error)}; {HINT}"
        ) from error
    chosen = request.choose_split(splits)
    try:
        dataset = datasets.load_dataset(source, split=chosen, streaming=request.streaming)
    except Exception as error:
        raise request.error(f"the data set {request.shown} can't be loaded: {one_line(error)}") from error
    repository = f"datasets--{source.replace('/', '--')}"
    cells = Cells(
        places=(os.path.join(constants.HF_HUB_CACHE, repository), str(datasets.config.DOWNLOADED_DATASETS_PATH)),
        addresses=(f"hf://datasets/{source}@", f"hf://datasets/{source}/"),
        rules=request.rules,
    )
    size = None if dataset.info is None else dataset.info.dataset_size
    return _with_undecoded_images(dataset, request, cells=cells, files=[f"{source}, {chosen}, {size} bytes"])


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


def _with_undecoded_images(dataset: Any, request: SourceRequest, *, cells: Cells, files: list[str]) -> Source:
    """Find the image column and leave its images, and those of other columns, undecoded."""
    source, column = request.shown, request.image_column
    features = dataset.features if dataset.features is not None else dataset._resolve_features().features
    if column is None:
        images = [name for name, feature in features.items() if _is_image(feature)]
        if len(images) != 1:
            found = f"has the image columns {', '.join(images)}" if images else "has no image column"
            raise request.error(f"{source} {found} (its columns: {', '.join(features)}); name one by image_column")
        column = images[0]
    elif column not in features:
        raise request.error(f"{source} has no column {column!r}; it has {', '.join(features)}")
    elif not _is_image(features[column]) and not _is_content_or_path(features[column]):
        raise request.error(
            f"the column {column!r} of {source} holds {_described(features[column])}, no images; "
            f"an image column holds pictures, their encoded bytes, or their paths"
        )
    dataset = dataset.with_format(None)
    for name, feature in features.items():
        if name == column or isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return Source(dataset=dataset, image_column=column, cells=cells, files=files)


def _is_image(feature: Any) -> bool:
    is_struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return is_struct or isinstance(feature, datasets.Image)


def _is_content_or_path(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")


def _described(feature: Any) -> str:
    if isinstance(feature, Value):
        return f"values of type {feature.dtype}"
    if isinstance(feature, (list, datasets.List, datasets.LargeList)):
        return "lists"
    if isinstance(feature, dict):
        return f"structs of {', '.join(feature)}"
    return type(feature).__name__
