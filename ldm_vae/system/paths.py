"""Names that were read from a file, and what may be made of them: never a path outside the file's own folder."""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath

from ldm_vae.system.text import printable

LONGEST_NAME = 255
"""Bytes of a file's name that every usual file system takes."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class OutsideFolder(ValueError):
    """A name that leads out of the folder that it belongs to."""


def inside(folder: str | Path, name: str, *, source: str | Path | None = None) -> Path:
    """Return the path of `name` within `folder`, for a name that comes from data, an index, an archive or a manifest.

    Whatever is read, written or removed under a name that a file told goes through here. A name is refused where it is
    empty or absolute, holds `..` or NUL, or passes through a symbolic link that leads out of the folder; both kinds of
    slash separate, on every system, when `..` and absolute names are looked for. The one exception are the links of a
    Hub cache's snapshot into the same repository's `blobs`.

    Args:
        folder: Where the name must stay.
        name: Relative path, with the separators of this system.
        source: The file that told the name, for the message.

    Returns:
        `folder / name`, unresolved. It need not exist.

    Raises:
        OutsideFolder: In one line, with the name and the file that told it.
    """
    folder = Path(folder)
    reason = _refusal(folder, name)
    if reason is not None:
        told = "" if source is None else f"{source}: "
        raise OutsideFolder(f"{told}'{printable(name)}' {reason}; nothing outside {folder} is touched")
    return folder / name


def name_refusal(name: str) -> str | None:
    """Say what is wrong with a name whatever its folder, or nothing."""
    parts = re.split(r"[/\\]", name)
    if "\0" in name or not any(part not in ("", ".") for part in parts):
        return "is no file's name"
    if name[0] in "/\\" or _DRIVE.match(name) or (os.name == "nt" and PureWindowsPath(name).drive):
        return "is an absolute path"
    if ".." in parts:
        return "leads out of its folder"
    return None


def _refusal(folder: Path, name: str) -> str | None:
    """Say what is wrong with a name, or nothing."""
    if reason := name_refusal(name):
        return reason
    real = os.path.realpath(folder / name)
    if not any(_lies_in(real, root) for root in (folder, *_hub_blobs(folder))):
        return "leads out of its folder through a link"
    return None


def _lies_in(path: str, root: str | Path) -> bool:
    root = os.path.realpath(root)
    return path != root and os.path.commonpath([path, root]) == root


def _hub_blobs(folder: Path) -> list[Path]:
    """Return where the links of a Hub snapshot lead: REPOSITORY/snapshots/REVISION/… to REPOSITORY/blobs."""
    snapshots = [parent for parent in folder.absolute().parents if parent.name == "snapshots"]
    return [parent.parent / "blobs" for parent in snapshots if (parent.parent / "refs").is_dir()]
