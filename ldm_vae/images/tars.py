"""Webdatasets: samples of files in tar archives, read in their order.

`datasets`' own reader isn't used: it takes the columns from the first five samples of the first archive, and fails
where a later sample's picture has another ending or a member appears twice.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from ldm_vae.images.addresses import is_store_address, open_file
from ldm_vae.images.cells import JSON_COLUMNS
from ldm_vae.images.formats import IMAGE_EXTENSIONS, PLUGIN_EXTENSIONS
from ldm_vae.images.metadata_files import LABEL_COLUMNS, decode_text
from ldm_vae.system.telling import counted, tell
from ldm_vae.system.text import first_line, printable

IMAGE = "image"
"""Column of the pictures, whatever the endings of their members."""

_PICTURES = tuple(ending[1:] for ending in (*IMAGE_EXTENSIONS, *PLUGIN_EXTENSIONS))
_NUMBERS = ("cls", "cls2", "index", "inx", "id", "count")
_TEXTS = ("txt", "text", "caption", "transcript", "url", "key")


class TarError(ValueError):
    """An archive that can't be read, or whose samples are ambiguous: says which, and what to do."""


def read_samples(files: list[tuple[str, int, int]], image_field: str | None) -> Iterator[dict[str, Any]]:
    """Yield the samples of webdatasets, archive after archive.

    A sample is the files in a row whose names agree up to the first dot. Its picture is the member named by
    `image_field` (`jpg`, `seg.png`), or the only one that has a picture's ending and nothing else behind the key.

    Args:
        files: (path, size, time of the last change) of each archive; the last two tell `datasets`' cache of changes.
        image_field: Which member is the picture; None or `image`: the only one.

    Yields:
        {"image": {"bytes", "path", "reason"}, "label", "__key__", "__url__", JSON_COLUMNS}, `reason` saying why there
        is no picture.

    Raises:
        TarError: An archive is damaged, or a sample has several pictures and no field is named.
    """
    wanted = None if image_field == IMAGE else image_field
    for path, *_ in files:
        for key, members, repeated in _samples(path):
            yield _row(path, key, members, repeated, wanted)


def count_samples(path: str, *, at_most: int) -> int:
    """Return the number of samples in an archive that have a picture, or `at_most` if there are as many.

    Raises:
        TarError: The archive is damaged.
    """
    number = 0
    for _, members, _ in _samples(path, read=False):
        number += any(_is_picture(name) for name in members)
        if number >= at_most:
            break
    return number


def _samples(path: str, *, read: bool = True) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """Yield (key, content by field, fields that appear twice) of an archive's samples."""
    key, number = "", 0
    members: dict[str, bytes] = {}
    repeated: list[str] = []
    try:
        with _open(path) as archive:
            for member in archive:
                place = _field(member.name)
                if place is None or not member.isreg():
                    continue
                if place[0] != key:
                    if members:
                        yield key, members, repeated
                    number += 1
                    key, members, repeated = place[0], {}, []
                name = place[1]
                if name in members:
                    repeated.append(name)
                file = archive.extractfile(member) if read else None
                content = b"" if file is None else file.read()
                if read and len(content) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                members[name] = content
                archive.members = []  # type: ignore[attr-defined]  # else it remembers every member
            _check_end(archive, path, num_samples=number)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise TarError(
            f"{printable(path)} can't be read to its end: {first_line(error)}; get the archive again, or leave it out"
        ) from error
    if members:
        yield key, members, repeated


def _open(path: str) -> tarfile.TarFile:
    return tarfile.open(fileobj=open_file(path), mode="r:*") if is_store_address(path) else tarfile.open(path, "r:*")


def _check_end(archive: tarfile.TarFile, path: str, *, num_samples: int) -> None:
    """Tell where an archive that was read to its end lacks the block of zeros behind its last member."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if not archive.fileobj.read(1):
        behind = counted(num_samples, "sample")
        tell(f"{printable(path)} lacks the mark at its end; it may have been cut short, behind {behind}")


def _field(name: str) -> tuple[str, str] | None:
    """Return the key of a member's sample and the rest of its name, in lower case; None for hidden members."""
    folder, _, base = name.rpartition("/")
    stem, dot, field = base.partition(".")
    if not stem or not dot or not field or folder.startswith("__MACOSX"):
        return None
    return f"{folder}/{stem}" if folder else stem, field.lower()


def _row(path: str, key: str, members: dict[str, bytes], repeated: list[str], wanted: str | None) -> dict[str, Any]:
    pictures = [name for name in members if _is_picture(name)]
    whole = [name for name in pictures if "." not in name] or pictures
    if wanted is not None:
        whole = [wanted] if wanted in members else []
    if len(whole) > 1:
        raise TarError(
            f"the sample {printable(key)} of {printable(path)} holds several pictures ({', '.join(whole)}); "
            f"name one by image_column"
        )
    reason = None
    if repeated:
        reason = f"its sample has several members .{repeated[0]}"
    elif not whole:
        missing = "picture" if wanted is None else f"member .{wanted}"
        reason = f"its sample has no {missing}, only .{', .'.join(members)}"
    image = {
        "bytes": members[whole[0]] if whole and reason is None else None,
        "path": f"{key}.{whole[0]}" if whole else key,
        "reason": reason,
    }
    others = {name: _decoded(name, content) for name, content in members.items() if name not in pictures}
    label = next((others.pop(name) for name in LABEL_COLUMNS if isinstance(others.get(name), int)), None)
    columns = {**others, "__key__": key, "__url__": path}
    return {IMAGE: image, "label": label, JSON_COLUMNS: json.dumps(columns)}


def _is_picture(name: str) -> bool:
    return name.rpartition(".")[2] in _PICTURES


def _decoded(name: str, content: bytes) -> Any:
    """Return a member's value: JSON, whole numbers and text by its ending; None for others, which aren't kept."""
    kind = name.rpartition(".")[2]
    if kind in ("json", *_NUMBERS):
        try:
            return json.loads(content) if kind == "json" else int(content)
        except (ValueError, RecursionError):
            return decode_text(content)[0]
    return decode_text(content)[0] if kind in _TEXTS or kind in LABEL_COLUMNS else None


def identities(files: list[str]) -> list[tuple[str, int, int]]:
    """Return (path, size, time of the last change) of files."""
    statuses = [os.stat(path) for path in files]
    return [(path, status.st_size, status.st_mtime_ns) for path, status in zip(files, statuses, strict=True)]
