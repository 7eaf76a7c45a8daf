"""Where outputs and inputs lie: folders here, or addresses."""

from __future__ import annotations

import re
from pathlib import Path

from ldm_vae.system.remote_store import RemoteStore
from ldm_vae.system.store import LocalStore, Store

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(place: str | Path) -> bool:
    """Whether a place is an address, such as `s3://bucket/latents`, and no path."""
    return isinstance(place, str) and _ADDRESS.match(place) is not None


def open_store(place: str | Path | Store) -> Store:
    """Return the store of a folder or an address; nothing is read or made.

    Raises:
        StoreError: The address is of a kind that isn't known, holds credentials, or needs a package that isn't here.
    """
    if isinstance(place, Store):
        return place
    if is_address(place) and not str(place).startswith("file://"):
        return RemoteStore(str(place))
    return LocalStore(str(place).removeprefix("file://"))
