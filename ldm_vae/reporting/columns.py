"""What the columns of metrics.jsonl mean, as docs/objective.md has it, which the package carries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ROW = re.compile(r"^\| `(?P<name>[\w/]+)` \|(?P<meaning>[^|]+)\|(?P<healthy>[^|]*)\|$")


@dataclass(frozen=True, kw_only=True)
class ColumnWords:
    """A column in words."""

    meaning: str
    """What it is, with its unit."""
    healthy: str
    """What a healthy run shows."""


@cache
def column_words() -> dict[str, ColumnWords]:
    """Return the documented columns by name, in the order of the page."""
    words = {}
    for line in objective_page().read_text(encoding="utf-8").splitlines():
        if found := _ROW.match(line):
            meaning, healthy = (found[part].strip().replace("`", "") for part in ("meaning", "healthy"))
            words[found["name"]] = ColumnWords(meaning=meaning[:1].upper() + meaning[1:], healthy=healthy)
    return words


def objective_page() -> Path:
    """Return where docs/objective.md is: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "docs" / "objective.md"
    return inside if inside.is_file() else package.parent / "docs" / "objective.md"
