"""Pictures at addresses, fetched only where that is asked for."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import Any

from datasets.utils.file_utils import xopen

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|:)")
_ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd")
_TIMEOUT_SECONDS = 10.0
_MOST_SECONDS = 60.0
_MOST_BYTES = 2**30
_BLOCK = 2**20


class FetchError(OSError):
    """A picture that can't be fetched."""


def is_address(path: str) -> bool:
    """Whether a path is an address, such as https://…, s3://…, hf://… or zip://…::https://…, instead of a file's."""
    return _ADDRESS.match(path) is not None


def address_roots(path: str) -> list[str]:
    """Return the places that an address leads to: one, or several where archives or caches are chained by `::`."""
    links = path.split("::")
    roots = [link for link in links if link.partition("://")[0] not in _ARCHIVES]
    return roots or [links[-1]]


def fetch(path: str) -> bytes:
    """Return what an address holds.

    Raises:
        FetchError: It can't be fetched, gives more than 1 GiB, or takes longer than a minute; in one line.
    """
    deadline = time.monotonic() + _MOST_SECONDS
    try:
        with _open(path) as file:
            blocks, size = [], 0
            while block := file.read(_BLOCK):
                blocks.append(block)
                size += len(block)
                if size > _MOST_BYTES or time.monotonic() > deadline:
                    limit = f"{_MOST_BYTES >> 30} GiB" if size > _MOST_BYTES else f"{_MOST_SECONDS:g} s"
                    raise FetchError(f"fetching it takes more than {limit}")
            return b"".join(blocks)
    except FetchError:
        raise
    except ImportError as error:
        raise FetchError(f"a package is missing that fetches it: {_line(error)}") from error
    except Exception as error:  # every file system has errors of its own
        raise FetchError(f"it can't be fetched: {_line(error)}") from error


def _open(path: str) -> Any:
    if path.lower().startswith(("http://", "https://")) and "::" not in path:
        request = urllib.request.Request(path, headers={"User-Agent": "ldm-vae"})
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    return xopen(path, "rb")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
