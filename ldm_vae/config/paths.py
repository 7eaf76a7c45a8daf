"""Paths in settings made absolute, so that they mean the same wherever a later command is started."""

from __future__ import annotations

import glob
import os
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ldm_vae.config.rules import Options

Settings = TypeVar("Settings", bound=Options)


def resolve_paths(settings: Settings, *, base: Path | None = None) -> Settings:
    """Return settings whose places here are absolute, so that they name the same wherever they are read again.

    A source that is here when this is called, or that can be no hub id, becomes an absolute path, and can't be taken
    for a hub id later. Addresses (`s3://…`) and hub ids stay as they are.

    Args:
        settings: A dataclass of settings, with those nested in it.
        base: The folder that relative paths start from; None for the one that the process was started in.
    """
    changes: dict[str, Any] = {}
    for declared in fields(settings):
        value, kind = getattr(settings, declared.name), declared.metadata.get("path")
        if is_dataclass(value) and isinstance(value, Options):
            changes[declared.name] = resolve_paths(value, base=base)
        elif declared.metadata.get("row"):
            changes[declared.name] = [resolve_paths(each, base=base) for each in value]
        elif kind is not None and value is not None:
            places = [_resolved(place, kind=kind, base=base or Path.cwd()) for place in _listed(value)]
            changes[declared.name] = places if isinstance(value, list) else places[0]
    return replace(settings, **changes)


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _resolved(place: str, *, kind: str, base: Path) -> str:
    if "://" in place:
        return place
    path = os.path.abspath(os.path.join(base, place))
    is_here = os.path.exists(path) or glob.glob(path, recursive=True)
    return path if kind in ("local", "place") or is_here or _no_hub_id(place) else place


def _no_hub_id(place: str) -> bool:
    """Return whether a place can't be a hub id, which is a name, or an owner and a name."""
    return place.count("/") > 1 or place.startswith((".", "/")) or any(letter in place for letter in "*?[\\ ")
