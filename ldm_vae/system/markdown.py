"""Text and tables in Markdown, whatever characters a name holds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ldm_vae.system.text import printable

_WIDEST = 40
_MARKUP = re.compile(r"[\\`*\[\]<>|]|(?<![^\W_])_|_(?![^\W_])")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns aligned so that it reads as plain text too.

    Args:
        rows: Rows of cells, as many in each, the header first. Bars and what a terminal would act on are escaped; a
            cell may hold other markup.
    """
    escaped = [[printable(cell).replace("|", r"\|") for cell in row] for row in rows]
    longest = [max(3, *(len(row[column]) for row in escaped)) for column in range(len(escaped[0]))]
    widths = [width if width <= _WIDEST else 3 for width in longest]  # a column of sentences isn't filled up
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in escaped]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def markdown_text(text: str) -> str:
    """Return `text` on one line, to be shown as it is: what Markdown would take for markup is escaped."""
    return _MARKUP.sub(lambda found: "\\" + found[0], printable(text))


def markdown_code(text: str) -> str:
    """Return `text` as code within a line, whatever backticks it holds."""
    shown = printable(text)
    ticks = _longer_ticks(shown, least=1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def markdown_block(text: str, *, language: str) -> str:
    """Return lines of code as a block, whatever backticks they hold."""
    ticks = _longer_ticks(text, least=3)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def _longer_ticks(text: str, *, least: int) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * (longest + 1 if longest >= least else least)
