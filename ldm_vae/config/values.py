"""Text into values, by the type that a field declares: nothing is guessed from how the text looks."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from ldm_vae.config.fields import FieldInfo
from ldm_vae.config.rules import FieldError, one_of

NULL = ("null", "Null", "NULL")
NONE = (*NULL, "~", "none", "None", "NONE")
"""Words that people write where they mean no value."""
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words for yes and no, in lower case."""
_NUMBER = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?([0-9]+(_[0-9]+)*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
_LARGEST = 2**63 - 1


def read_value(text: str, field: FieldInfo, *, quoted: bool = False) -> Any:
    """Return the value that a text means for a field, or for an entry of a field that is a list.

    Args:
        text: As it stands in the file or on the command line.
        field: Whose value it is.
        quoted: Whether it stood in quotes in a file: `"null"` is a name, null is nothing.

    Raises:
        FieldError: The text is no value of that field.
    """
    if field.optional and not field.many and not quoted and text in NONE:
        return _none(text, field)
    if field.choices:
        return _choice(text, field)
    if field.type is bool:
        if text.lower() not in SWITCHES:
            raise _wrong(text, field, "true or false")
        return SWITCHES[text.lower()]
    if field.type in (int, float):
        return _number(text, field)
    assert field.type is str, field
    return text


def _none(text: str, field: FieldInfo) -> None:
    if field.type is not str or text in NULL:
        return
    quoted = f"./{text} for what has that name" if field.path else f"'{text}'"
    other = "~/ for the home folder" if text == "~" else quoted
    raise FieldError(f"<{field.name}> is {text}; write null for nothing, or {other}")


def _choice(text: str, field: FieldInfo) -> Any:
    for choice in field.type.__args__:
        if str(choice) == text:
            return choice
    raise FieldError(f"<{field.name}> is '{text}'; {one_of(text, field.choices)}")


def _number(text: str, field: FieldInfo) -> int | float:
    kind = "a whole number" if field.type is int else "a number"
    if not _NUMBER.fullmatch(text):
        raise _wrong(text, field, kind)
    number = Decimal(text)
    if field.type is float:
        return float(number)
    if abs(number) > _LARGEST:
        raise _wrong(text, field, f"{kind} of at most 19 digits")
    if number != int(number):
        raise _wrong(text, field, kind)
    return int(number)


def _wrong(text: str, field: FieldInfo, kind: str) -> FieldError:
    each = "each entry must be" if field.many else "it must be"
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    if field.record is not None:
        kind += f", or a {field.record.__name__.lower()} in braces"
    or_null = ", or null for nothing" if field.optional and not field.many else ""
    return FieldError(f"<{field.name}> is '{shown}'; {each} {kind}{or_null}")
