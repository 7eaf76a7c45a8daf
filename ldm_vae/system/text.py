"""Names and messages of others, made fit for a terminal and a table."""

from __future__ import annotations

import unicodedata
from pathlib import Path

_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, formatting (right-to-left override), surrogate, separators


def first_line(error: object) -> str:
    """Return the first line of what an error says, without a full stop; its class's name where it says nothing."""
    lines = str(error).strip().splitlines()
    return printable(lines[0].strip().rstrip(".")) if lines else type(error).__name__


def one_line(error: object) -> str:
    """Return all that an error says, on one line; its class's name where it says nothing."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def printable(text: str) -> str:
    """Return `text` on one line: each character that a terminal would act on instead of showing it is escaped.

    A file's name may hold a newline, or the control sequence that clears the screen. Zero-width joiners stay where
    they join two visible characters, as in emoji.
    """
    return "".join(_shown(text, at) for at in range(len(text)))


def short_name(source: str) -> str:
    """Return what to call an autoencoder or data in a table: a folder's or file's own name, or the hub id."""
    path = Path(source).expanduser()
    return (path.resolve().name or source) if path.exists() else source


def _shown(text: str, at: int) -> str:
    character = text[at]
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    if character == "\u200d" and 0 < at < len(text) - 1:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
