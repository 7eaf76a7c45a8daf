"""What is told beside results and errors: one line on stderr, once, by one process."""

from __future__ import annotations

import multiprocessing
import os
import sys

_told: set[str] = set()


def tell(message: str) -> None:
    """Print a line for the user on stderr: once, by the main process of rank 0, however often it is said."""
    is_main = multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0"
    if is_main and message not in _told:
        _told.add(message)
        print(f"ldm-vae: {message}", file=sys.stderr, flush=True)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as `1 file` and `2,000 files`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
