"""JSON that every reader takes: numbers that aren't finite become null, with a word beside."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

NOT_FINITE = "_not_finite"
"""End of the key, beside that of a null, whose value says what stood there: `nan`, `inf` or `-inf`."""


def dump_json(content: Any, *, indent: int | None = None) -> str:
    """Return `content` as JSON by the standard, which knows neither NaN nor infinity.

    A number that isn't finite becomes null; beside its key, or that of the list that holds it, stands the same key
    with `NOT_FINITE` behind it, which says what the number was (all of a list, sorted).
    """
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        entries: dict[str, Any] = {}
        for key, value in content.items():
            entries[key] = _finite(value)
            if words := _words(value):
                entries[f"{key}{NOT_FINITE}"] = ", ".join(sorted(words))
        return entries
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if _words(content) else content


def _words(value: Any) -> set[str]:
    """Return what isn't finite: `value` itself, or the numbers of a list."""
    if isinstance(value, float) and not math.isfinite(value):
        return {str(value)}
    if isinstance(value, (list, tuple)):
        return set().union(*(_words(each) for each in value if not isinstance(each, Mapping)))
    return set()
