"""A collection of files of sound with random access, none decoded before it is read."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Unpack

from torch import Tensor

from ldm_vae.audio.reading import read_part
from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.folders import SOUND_EXTENSIONS, has_split_folders, list_folder, relative_path, split_paths
from ldm_vae.images.guard import UnreadableImage, open_regular
from ldm_vae.images.request import SourceOptions, SourceRequest, source_request
from ldm_vae.images.splits import split_name
from ldm_vae.system.text import printable

HINT = f"give a folder or files of sound ({', '.join(SOUND_EXTENSIONS[:6])} …)"


class SoundCollection:
    """Sounds by number. Can be pickled, for data workers.

    Args:
        root: Folder of the files.
        paths: The files, relative to it.
        rules: What decoding may cost.
    """

    noun = "sound"

    def __init__(self, root: str, paths: Sequence[str], *, rules: ReadingRules) -> None:
        self._root, self._paths, self._rules = root, list(paths), rules

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, i: int) -> str:
        """What to call sound i: its path relative to the folder."""
        return printable(self._paths[i])

    def data_names(self) -> Iterator[str]:
        """Yield what tells this collection from another, in its order: the files' names."""
        yield from self._paths

    def names_digest(self) -> str:
        """SHA-256, in hexadecimal, of all sounds' names in order."""
        names = (self.name(i).encode(errors="backslashreplace") + b"\0" for i in range(len(self)))
        return hashlib.sha256(b"".join(names)).hexdigest()

    def source_stat(self, i: int) -> tuple[int, int] | None:
        """Size in bytes and time of the last change in ns of sound i; None where it can't be found."""
        try:
            status = os.stat(self._path(i))
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def content_digest(self, i: int) -> str | None:
        """SHA-256 of the file of sound i, in hexadecimal; None where it can't be read."""
        try:
            with open_regular(self._path(i)) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, UnreadableImage):
            return None

    def read(self, i: int, *, frames: int, start_of: Callable[[int], int]) -> Tensor:
        """Return a part of sound i; see `read_part`.

        Raises:
            UnreadableSound: It can't be read.
        """
        return read_part(self._path(i), frames=frames, start_of=start_of, name=self.name(i), rules=self._rules)

    def _path(self, i: int) -> str:
        return os.path.join(self._root, self._paths[i])


def open_sounds(source: str, **options: Unpack[SourceOptions]) -> SoundCollection:
    """Open a folder of sounds, or the files that a path or glob names, in the order of their paths.

    Splits are as those of folders of images. What is left out or assumed is told on stderr.

    Args:
        source: Path or glob.
        options: See `SourceOptions`; sounds have no columns.

    Raises:
        FieldError: There is no such source, it holds no sounds, or the split doesn't fit it.
    """
    request, path = source_request(source, streaming=False, **options), os.path.expanduser(source)
    if os.path.isdir(path):
        root, paths = path, _listed(path, request)
    else:
        files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
        files = [os.path.abspath(file) for file in files if file.lower().endswith(SOUND_EXTENSIONS)]
        root = os.path.dirname(files[0]) if len(files) == 1 else os.path.commonpath(files) if files else ""
        paths = [relative_path(file, root) for file in files]
    if not paths:
        raise request.error(f"{request.shown} names no sound; {HINT}")
    splits = split_paths(paths)
    chosen = request.choose_split(splits, unnamed=not has_split_folders(paths))
    name = split_name(chosen)
    rows = request.slice(chosen, {name: len(splits[name])})
    return SoundCollection(os.path.abspath(root), splits[name][rows.start : rows.stop], rules=request.rules)


def _listed(folder: str, request: SourceRequest) -> list[str]:
    try:
        listing = list_folder(folder, endings=SOUND_EXTENSIONS)
    except OSError as error:
        raise request.error(f"{printable(error.filename)} can't be listed: {error.strerror}") from error
    for note in listing.notes():
        request.tell(note)
    return listing.images
