"""From what a user names (a folder, files, a hub id) to a data set of undecoded images."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator

import datasets

from ldm_vae.images.addresses import StoreCells, is_store_address, list_address
from ldm_vae.images.cells import Cells
from ldm_vae.images.folder_dataset import folder_dataset
from ldm_vae.images.folders import (
    TABLE_FORMATS,
    Listing,
    describe_endings,
    has_split_folders,
    inside_output,
    list_folder,
    relative_path,
    split_paths,
)
from ldm_vae.images.formats import ARRAY_EXTENSIONS, image_extensions
from ldm_vae.images.metadata_files import METADATA_FILES, MetadataError
from ldm_vae.images.request import HINT, Source, SourceRequest
from ldm_vae.images.splits import split_name
from ldm_vae.images.table_sources import open_hub, open_listed_tables, open_saved, open_tables
from ldm_vae.images.tables import choose_data
from ldm_vae.images.tars import IMAGE
from ldm_vae.system.remote_store import RemoteStore
from ldm_vae.system.store import StoreError
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable


def open_source(request: SourceRequest) -> Source:
    """Find and open the data set that is asked for; with `streaming` files and hub come as `IterableDataset`.

    Raises:
        ValueError: There is no such source, it holds no images, or split or column don't fit it.
    """
    path = os.path.expanduser(request.source)
    with _quiet():
        if request.recorded and not os.path.isabs(path) and "://" not in path:
            if os.path.lexists(path):
                request.tell("the hub's is read, as when the run began, not what has that name here")
            return open_hub(request)
        if is_store_address(path):
            return _open_address(path, request)
        if os.path.isdir(path):
            return _open_folder(path, request)
        files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
        if files:
            return _open_files(_without_outputs(files, path, request), request)
        if _is_local(path) or os.path.lexists(path):
            what = "no regular file" if os.path.exists(path) else "neither a folder nor a file here"
            raise request.error(f"{request.shown} is {what}; {HINT}")
        return open_hub(request)


def _open_folder(path: str, request: SourceRequest) -> Source:
    if any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json")):
        return open_saved(path, request)
    try:
        listing = list_folder(path, arrays=request.rules.reads_numbers)
    except OSError as error:
        raise request.error(f"{printable(error.filename)} can't be listed: {error.strerror}") from error
    if not listing.images and not listing.tables:
        raise request.error(f"the folder {request.shown} holds no image{_instead(listing)}; {HINT}")
    try:
        chosen = choose_data(listing)
    except ValueError as error:
        raise request.error(f"the folder {request.shown} {error}") from error
    for note in (*listing.notes(), *chosen.notes):
        request.tell(note)
    if chosen.tables:
        return open_tables(path, [os.path.join(path, table) for table in chosen.tables], request)
    return _open_images(listing, request)


def _open_address(address: str, request: SourceRequest) -> Source:
    """Open what lies at an address: pictures, or files of many pictures of one kind."""
    try:
        store, listing, sizes = list_address(address)
    except StoreError as error:
        raise request.error(str(error)) from None
    if not listing.images and not listing.tables:
        raise request.error(f"{request.shown} holds no image{_instead(listing)}; {HINT}")
    kinds = {os.path.splitext(path)[1].lower() for path in listing.tables}
    if len(kinds) + bool(listing.images) > 1:
        found = ", ".join([*(["pictures"] if listing.images else []), *sorted(kinds)])
        raise request.error(f"{request.shown} holds several kinds of data ({found}); name one by a pattern")
    for note in listing.notes():
        request.tell(note)
    if listing.tables:
        addresses = {path: store.place(path) for path in listing.tables}
        return open_listed_tables(store.place(), addresses, sizes, request)
    return _open_images(listing, request, store=store)


def _instead(listing: Listing) -> str:
    """Say what a folder without images holds."""
    found = [describe_endings(listing.left_out)] if listing.left_out else []
    if listing.outputs:
        found.append(f"{counted(len(listing.outputs), 'folder')} that ldm-vae wrote")
    if listing.not_files:
        found.append(f"{len(listing.not_files):,} pipes, sockets or devices")
    return f", but {' and '.join(found)}" if found else ""


def _without_outputs(files: list[str], pattern: str, request: SourceRequest) -> list[str]:
    """Leave out of a pattern's files those in folders below its fixed part that this program wrote."""
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    if root == pattern:
        return files
    kept, outputs = [], {}
    for file in files:
        found = inside_output(os.path.abspath(file), root=os.path.abspath(root))
        if found is None:
            kept.append(file)
        else:
            outputs[found[0]] = found[1].noun
    if outputs:
        names = ", ".join(f"{printable(folder)} ({noun})" for folder, noun in list(outputs.items())[:5])
        request.tell(f"left out {counted(len(files) - len(kept), 'file')} in folders that ldm-vae wrote: {names}")
    if not kept:
        raise request.error(f"{request.shown} names nothing but files that ldm-vae wrote; {HINT}")
    return kept


def _open_images(listing: Listing, request: SourceRequest, *, store: RemoteStore | None = None) -> Source:
    """Open image files, which lie in the store where there is one."""
    if request.image_column not in (None, IMAGE):
        request.tell(f"files of images have no column {request.image_column!r}; the files are the images")
    splits = split_paths(listing.images)
    chosen = request.choose_split(splits, unnamed=not has_split_folders(listing.images))
    name = split_name(chosen)
    rows = request.slice(chosen, {name: len(splits[name])})
    paths = splits[name][rows.start : rows.stop]
    try:
        dataset, notes = folder_dataset(listing, paths, read=None if store is None else store.read)
    except MetadataError as error:
        raise request.error(f"the metadata in {printable(listing.root)}: {error}") from error
    for note in notes:
        request.tell(note)
    cells = Cells(root=os.path.abspath(listing.root), rules=request.rules)
    if store is not None:
        cells = StoreCells(store, rules=request.rules)
    return Source(dataset=dataset, image_column=IMAGE, cells=cells)


def _open_files(files: list[str], request: SourceRequest) -> Source:
    """Open image, parquet, webdataset or arrow files, all of one kind."""
    files = [os.path.abspath(file) for file in files]
    root = os.path.dirname(files[0]) if len(files) == 1 else os.path.commonpath(files)
    extensions = image_extensions(arrays=request.rules.reads_numbers)
    images = [file for file in files if file.lower().endswith(extensions)]
    beside = [file for file in files if os.path.basename(file).lower() in METADATA_FILES]
    if images and len(images) + len(beside) == len(files):
        listing = Listing(root=root, images=[relative_path(file, root) for file in images])
        listing.metadata = [relative_path(file, root) for file in beside]
        return _open_images(listing, request)
    endings = sorted({os.path.splitext(file)[1].lower() or "none" for file in files})
    if len(endings) > 1 or endings[0] not in TABLE_FORMATS:
        hint = "value_range makes arrays images" if set(endings) <= set(ARRAY_EXTENSIONS) else HINT
        raise request.error(f"{request.shown} names files with the endings {', '.join(endings)}; {hint}")
    return open_tables(root, files, request)


def _is_local(path: str) -> bool:
    """Whether `path` can be no hub id, which is a name or an owner and a name."""
    return path.count("/") > 1 or path.startswith((".", "/")) or any(letter in path for letter in "*?[\\ ")


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
