"""What is told beside results and errors: one line on stderr, once, by one process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from typing import Any


class Note(UserWarning):
    """What a caller should know of a result. In Python it is a warning; the command line shows it as a plain line."""


_told: set[str] = set()


def tell(message: str) -> None:
    """Print a line for the user on stderr: once, by the main process of rank 0, however often it is said."""
    is_main = multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0"
    if is_main and message not in _told:
        _told.add(message)
        print(f"ldm-vae: {message}", file=sys.stderr, flush=True)


def show_notes_as_lines() -> None:
    """Have notes shown as `tell` shows its lines, without the place in the code that warned."""
    shown = warnings.formatwarning

    def format_warning(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        if issubclass(category, Note):
            return f"ldm-vae: {message}\n" if os.environ.get("RANK", "0") == "0" else ""
        return shown(message, category, *place, **line)

    warnings.formatwarning = format_warning


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as `1 file` and `2,000 files`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
