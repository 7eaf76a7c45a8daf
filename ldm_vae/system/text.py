"""Names and messages of others, made fit for a terminal."""

from __future__ import annotations

import unicodedata

_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, formatting (right-to-left override), surrogate, separators


def printable(text: str) -> str:
    """Return `text` on one line: each character that a terminal would act on instead of showing it is escaped.

    A file's name may hold a newline, or the control sequence that clears the screen. Zero-width joiners stay where
    they join two visible characters, as in emoji.
    """
    return "".join(_shown(text, at) for at in range(len(text)))


def _shown(text: str, at: int) -> str:
    character = text[at]
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    if character == "\u200d" and 0 < at < len(text) - 1:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
