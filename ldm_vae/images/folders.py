"""Folders as they are found: which files are pictures, which are tables of pictures, and what is left out.

`datasets`' own imagefolder isn't used: it takes file names with the word "test" in them for a split of their own.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from ldm_vae.images.formats import ARRAY_EXTENSIONS, EXTRA, PLUGIN_EXTENSIONS, image_extensions
from ldm_vae.images.metadata_files import METADATA_FILES
from ldm_vae.system.output_kinds import KINDS, RUN, OutputKind, is_marked
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

TABLE_FORMATS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
"""Endings of files that hold many pictures, and the name of each format."""

CAPTION_EXTENSIONS = (".txt", ".caption")
"""Endings of files that hold the caption of the picture beside them."""

SOUND_EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
)  # fmt: skip
"""Endings, in lower case, of files that count as sounds."""
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Folders that are splits, where a folder holds nothing but such, and the splits' names."""

_WELL_KNOWN = re.compile(r"(readme|licen[cs]e|copying|checksums?|sha\d+sums|md5sums?|thumbs\.db|desktop\.ini).*", re.I)
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_NAMED = 5


@dataclass(kw_only=True)
class Listing:
    """What a folder and the folders below it hold. Paths are relative to `root`, with `/` between folders."""

    root: str
    images: list[str] = field(default_factory=list)
    """Pictures, sorted."""
    tables: list[str] = field(default_factory=list)
    """Files that hold many pictures, sorted."""
    metadata: list[str] = field(default_factory=list)
    """metadata.csv, .jsonl, .parquet and the like, sorted."""
    captions: dict[str, str] = field(default_factory=dict)
    """For a picture with a caption beside it: the path of the caption's file."""
    outputs: list[tuple[str, OutputKind]] = field(default_factory=list)
    """Folders that this program wrote, none of whose files are listed."""
    links_outside: list[str] = field(default_factory=list)
    """Pictures and folders that are links to something outside of `root`."""
    not_files: list[str] = field(default_factory=list)
    """What is called like a picture or a table and is a pipe, a socket or a device."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Other files by their endings in lower case; "" stands for none."""
    hidden: int = 0
    """Hidden files that are called like pictures or tables."""

    def notes(self) -> Iterator[str]:
        """Yield a line on everything that is left out, and on links that lead outside."""
        if self.outputs:
            names = _some(f"{path} ({kind.noun})" for path, kind in self.outputs)
            yield f"left out {counted(len(self.outputs), 'folder')} that ldm-vae wrote: {names}"
        if self.left_out:
            yield f"left out by their endings: {describe_endings(self.left_out)}"
        if self.not_files:
            number = counted(len(self.not_files), "pipe, socket or device", "pipes, sockets and devices")
            yield f"left out {number}: {_some(self.not_files)}"
        if self.hidden:
            yield f"left out {counted(self.hidden, 'hidden file')} called like pictures"
        if self.links_outside:
            yield f"follows {counted(len(self.links_outside), 'link')} to the outside: {_some(self.links_outside)}"


def list_folder(root: str, *, arrays: bool = False, endings: tuple[str, ...] = ()) -> Listing:
    """List a folder in one walk.

    Hidden files and folders, and folders that this program wrote, are left out; links to folders are followed, but no
    folder is listed twice.

    Args:
        root: The folder.
        arrays: Whether files of arrays count as pictures.
        endings: In lower case, of the files that are listed in place of pictures, where tables don't count.

    Raises:
        OSError: A folder can't be listed.
    """
    listing = Listing(root=root)
    walk = _Walk(
        listing, extensions=endings or image_extensions(arrays=arrays), tables=() if endings else TABLE_FORMATS
    )
    walk.list("")
    match_captions(listing, walk.captions)
    for paths in (listing.images, listing.tables, listing.metadata):
        paths.sort()
    return listing


def list_images(root: str) -> list[str]:
    """Return the paths, relative to `root`, of the pictures that `list_folder` finds, sorted.

    Raises:
        OSError: A folder can't be listed.
    """
    return list_folder(root).images


def inside_output(path: str, *, root: str) -> tuple[str, OutputKind] | None:
    """Return the folder between `root` and a file below it that this program wrote, with its kind, if there is one."""
    folder = os.path.dirname(path)
    while _lies_in(folder, root) and folder != root:
        for kind in KINDS:
            if is_marked(folder, kind):
                return folder, kind
        folder = os.path.dirname(folder)
    return None


def describe_endings(endings: Counter[str]) -> str:
    """Return how many files have which ending, the commonest first; names the extra that reads some of them."""
    shown = [f"{number:,} {printable(ending) or 'without ending'}" for ending, number in endings.most_common(_NAMED)]
    rest = len(endings) - _NAMED
    more = f" and {rest} more endings" if rest > 0 else ""
    extra = f" ({EXTRA})" if any(ending in PLUGIN_EXTENSIONS for ending in endings) else ""
    arrays = " (value_range makes arrays images)" if any(ending in ARRAY_EXTENSIONS for ending in endings) else ""
    has_sounds = not endings.keys().isdisjoint(SOUND_EXTENSIONS)
    sounds = " (train, encode and evaluate read sounds with mel_frames)" if has_sounds else ""
    return ", ".join(shown) + more + extra + arrays + sounds


class _Walk:
    """Fills a listing, folder by folder, each before the folders in it."""

    def __init__(self, listing: Listing, *, extensions: tuple[str, ...], tables: Collection[str]) -> None:
        self._listing = listing
        self._extensions, self._tables = extensions, tables
        self._root = listing.root
        self._real_root = os.path.realpath(listing.root)
        self._listed: set[str] = set()
        self.captions: set[str] = set()
        """Files that are called like captions."""

    def list(self, prefix: str) -> None:
        """List a folder, given by its path relative to the root with `/` at its end, and those below it."""
        folder = os.path.join(self._root, prefix) if prefix else self._root
        real = os.path.realpath(folder)
        if real in self._listed:
            return
        self._listed.add(real)
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        kind = _output_kind(folder, entries)
        if kind is not None and prefix:
            self._listing.outputs.append((prefix.rstrip("/"), kind))
            return
        folders = []
        for entry in entries:
            owned = kind is not None and kind.owns(entry.name)
            if entry.is_dir():
                if owned:  # a run was written into the folder of its pictures
                    self._listing.outputs.append((prefix + entry.name, kind or RUN))
                elif not entry.name.startswith(".") and entry.name not in _SYSTEM_FOLDERS:
                    folders.append(entry.name)
                    self._note_link(entry, prefix)
            elif not owned:
                self._sort_in(entry, prefix)
        for name in folders:
            self.list(f"{prefix}{name}/")

    def _sort_in(self, entry: os.DirEntry[str], prefix: str) -> None:
        """Put a file into the list where it belongs."""
        listing, name, path, lower = self._listing, entry.name, prefix + entry.name, entry.name.lower()
        ending = os.path.splitext(lower)[1]
        is_image, is_table = lower.endswith(self._extensions), ending in self._tables
        if name.startswith("."):
            listing.hidden += (is_image or is_table) and not name.startswith("._")
        elif lower in METADATA_FILES:
            listing.metadata.append(path)
        elif is_image or is_table:
            self._note_link(entry, prefix)
            if _is_special(entry):
                listing.not_files.append(path)
            else:
                (listing.images if is_image else listing.tables).append(path)
        elif ending in CAPTION_EXTENSIONS:
            self.captions.add(path)
        elif not is_well_known(name):
            listing.left_out[ending] += 1

    def _note_link(self, entry: os.DirEntry[str], prefix: str) -> None:
        if entry.is_symlink() and not _lies_in(os.path.realpath(entry.path), self._real_root):
            self._listing.links_outside.append(prefix + entry.name)


def match_captions(listing: Listing, captions: Collection[str]) -> None:
    """Put into a listing which of its pictures has which of the captions' files; those of none are left out.

    Args:
        listing: With its pictures.
        captions: Paths of files that are called like captions.
    """
    captions, used = set(captions), set()
    for image in listing.images if captions else ():
        stem = image.rpartition(".")[0]
        for caption in (stem + ending for ending in CAPTION_EXTENSIONS):
            if caption in captions:
                listing.captions[image] = caption
                used.add(caption)
                break
    for caption in captions - used:
        if not is_well_known(caption):
            listing.left_out[os.path.splitext(caption)[1].lower()] += 1


def is_well_known(path: str) -> bool:
    """Whether a file is one of those that folders have beside their data, such as a README."""
    return _WELL_KNOWN.fullmatch(os.path.basename(path)) is not None


def _output_kind(folder: str, entries: Iterable[os.DirEntry[str]]) -> OutputKind | None:
    names = {entry.name for entry in entries}
    return next((kind for kind in KINDS if kind.mark in names and is_marked(folder, kind)), None)


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a pipe, a socket or a device, or a link to one: reading it may never end."""
    if entry.is_file():
        return False
    try:
        return not stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link that leads nowhere, or a file that has just gone
        return False


def _lies_in(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""
    return ", ".join(map(printable, listed[:_NAMED])) + more


def relative_path(file: str, root: str) -> str:
    """Return a file's path relative to `root`, with `/` between folders."""
    return os.path.relpath(file, root).replace(os.sep, "/")


def has_split_folders(paths: list[str]) -> bool:
    """Whether all top folders are splits."""
    return SPLIT_FOLDERS.keys() >= {_top(path) for path in paths}


def has_split_names(paths: list[str]) -> bool:
    """Whether the first words of all files' names are splits."""
    return SPLIT_FOLDERS.keys() >= {_first_word(path) for path in paths}


def split_paths(paths: list[str]) -> dict[str, list[str]]:
    """Return the files of each split.

    The split is the folder at the top where there are only such of `SPLIT_FOLDERS`, else all files are `train`.
    """
    return _split({path: _top(path) for path in paths})


def split_names(paths: list[str]) -> dict[str, list[str]]:
    """Return the files of each split.

    The split is the first word of a file's name (train-00000-of-00002.parquet) where there are only such of
    `SPLIT_FOLDERS`, else all files are `train`.
    """
    return _split({path: _first_word(path) for path in paths})


def _top(path: str) -> str:
    return path.partition("/")[0] if "/" in path else ""


def _first_word(path: str) -> str:
    return re.split(r"[-_.]", os.path.basename(path))[0]


def _split(words: dict[str, str]) -> dict[str, list[str]]:
    if not SPLIT_FOLDERS.keys() >= set(words.values()):
        return {"train": list(words)}
    splits: dict[str, list[str]] = {}
    for path, word in words.items():
        splits.setdefault(SPLIT_FOLDERS[word], []).append(path)
    return splits
