"""Which values are valid, and how messages about wrong ones name their fields.

A field states its range where it is declared (`batch_size: int = positive(12)`); `Options` checks it when the
dataclass is made, and `--help` shows it. In a message a field's name stands in angle brackets, `<train.batch_size>`.
The user reads it as it was given: `--train.batch_size` on the command line, `train.batch_size` with file and line from
a file, and the bare name in Python.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ldm_vae.config.names import did_you_mean

_MARK = re.compile(r"<([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)>")
_known = {"config"}

Ends = Literal["[]", "(]", "[)", "()"]
"""Which ends of a range belong to it."""


class Origin(NamedTuple):
    """Where a field's value comes from."""

    name: str
    """The field as the user gave it: `--train.batch_size`, or `train.batch_size` in a file."""
    file: str = ""
    line: int = 0


class NamesFields(Exception):
    """An error whose message names fields, as `<name>`; in `str()` they stand bare."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.told({})

    def told(self, origins: Mapping[str, Origin]) -> str:
        """Return the message with each field named as the user gave it; a file's name is given once."""
        files: set[str] = set()

        def name(mark: re.Match[str]) -> str:
            origin = origins.get(mark[1], Origin(mark[1]))
            place = f" ({origin.file}, line {origin.line})" if origin.file else ""
            if origin.file in files:
                place = f" (line {origin.line})"
            if origin.file:
                files.add(origin.file)
            return f"{origin.name}{place}" if mark[1] in _known else mark[0]

        return _MARK.sub(name, self.message)


class FieldError(NamesFields, ValueError):
    """A setting that is wrong."""


class RunError(NamesFields, RuntimeError):
    """A failure during the work, where other settings may help."""


def mark(field: str) -> str:
    """Return a field's name as it stands in a message: `<vae>`."""
    _known.add(field)
    return f"<{field}>"


def within(place: str, problem: str | Exception) -> FieldError:
    """Return the error `place: problem`; the fields that the problem names are still told as the user gave them.

    Args:
        place: A marked field, or a file.
        problem: What is wrong there.
    """
    return FieldError(f"{place}: {problem.message if isinstance(problem, NamesFields) else problem}")


def require(condition: bool, message: str) -> None:
    """Raise `FieldError(message)` unless `condition`: for what a user can get wrong."""
    if not condition:
        raise FieldError(message)


def require_divides(divisor: int, side: int, *, name: str, whose: str) -> None:
    """Raise `FieldError` unless `divisor` divides `side`, naming the nearest numbers that it does divide.

    Args:
        divisor: A positive number.
        side: The value of the field.
        name: The field, such as `data.resolution`.
        whose: What the divisor is, such as "the model's factor".
    """
    below = side // divisor * divisor
    nearest = " or ".join(str(number) for number in (below, below + divisor) if number > 0)
    require(side % divisor == 0, f"<{name}> is {side}, which {whose} {divisor} does not divide; take {nearest}")


def require_one_of(choices: Any, **values: object) -> None:
    """Raise `FieldError` unless each value, by its argument's name, is one of a `Literal`'s; for calls in Python."""
    for name, value in values.items():
        words = get_args(choices)
        require(value in words, f"{mark(name)} is '{value}'; {one_of(str(value), words)}")


def require_positive(**values: float | None) -> None:
    """Raise `FieldError` unless each number, by its argument's name, is above 0 or None; for calls in Python."""
    for name, value in values.items():
        require(value is None or value > 0, f"{mark(name)} is {value}; {_POSITIVE.must}")


# Ranges


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where a number may lie; for a list, each of its numbers."""

    within: Callable[[float], bool]
    """Returns whether a number lies in the range."""
    must: str
    """End of the message about a number outside the range: "it must be positive"."""
    shown: str
    """What `--help` says of the range: "positive"."""


_POSITIVE = Range(within=lambda value: value > 0, must="it must be positive", shown="positive")


def positive(default: Any = MISSING, *, factory: Any = MISSING) -> Any:
    """Return a dataclass field of numbers above 0."""
    return _ranged(_POSITIVE, default, factory)


def at_least(low: float, default: Any = MISSING, *, factory: Any = MISSING) -> Any:
    """Return a dataclass field of numbers from `low` on."""
    must = "it can't be negative" if low == 0 else f"it can't be below {low:g}"
    return _ranged(Range(within=lambda value: value >= low, must=must, shown=f"{low:g} or more"), default, factory)


def between(low: float, high: float, default: Any = MISSING, *, ends: Ends = "[]", factory: Any = MISSING) -> Any:
    """Return a dataclass field of numbers from `low` to `high`; a round bracket in `ends` leaves that end out."""

    def within(value: float) -> bool:
        return low < value < high or (value == low and ends[0] == "[") or (value == high and ends[1] == "]")

    shown = f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
    return _ranged(Range(within=within, must=f"it must lie {shown}", shown=shown), default, factory)


def _ranged(range_: Range, default: Any, factory: Any) -> Any:
    metadata = {"range": range_}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


# Names and places


def one_of(word: str, choices: Iterable[object]) -> str:
    """Return the end of a message about a word that is none of the choices."""
    known = [str(choice) for choice in choices]
    return f"it must be one of {', '.join(known)}{did_you_mean(word, known)}"


def local_path(default: Any = MISSING) -> Any:
    """Return a dataclass field that names a folder or file here, no address; `~` is the home folder."""
    return field(default=default, metadata={"path": "local"})


def place(default: Any = MISSING) -> Any:
    """Return a dataclass field that names a folder or file here, or an address; `~` is the home folder."""
    return field(default=default, metadata={"path": "place"})


def source(default: Any = MISSING) -> Any:
    """Return a dataclass field that names a folder, file, glob, address or hub id; `~` is the home folder."""
    return field(default=default, metadata={"path": "source"})


@dataclass(kw_only=True)
class Options:
    """Base of all settings: checks each field against its range and its names, and expands `~`."""

    section: ClassVar[str] = ""
    """Where the fields stand in a run's config: `train` for `train.batch_size`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _known.update(cls.field_name(name) for base in cls.__mro__ for name in inspect.get_annotations(base))

    @classmethod
    def field_name(cls, name: str) -> str:
        """Return a field's dotted name: `train.batch_size`."""
        return f"{cls.section}.{name}" if cls.section else name

    def __post_init__(self) -> None:
        for declared in fields(self):
            value = getattr(self, declared.name)
            if "path" in declared.metadata:
                is_local = declared.metadata["path"] == "local"
                value = _expanded(value, name=self.field_name(declared.name), is_local=is_local)
                setattr(self, declared.name, value)
            _check(self, declared.name, value, declared.metadata.get("range"))


def _expanded(value: Any, *, name: str, is_local: bool) -> Any:
    """Return a place, or a list of places, with `~` replaced."""
    if isinstance(value, list):
        return [_expanded(entry, name=name, is_local=is_local) for entry in value]
    if value is None:
        return None
    value = os.fspath(value)
    require(value != "" and "\0" not in value, f"<{name}> is empty or no name of a file; name a folder or file")
    # Its words may hold credentials, so they aren't told.
    require(not (is_local and "://" in value), f"<{name}> is an address; it must be a folder or file of this machine")
    return os.path.expanduser(value)


def _check(options: Options, name: str, value: Any, range_: Range | None) -> None:
    kind: type = type(options)
    choices = _choices(kind).get(name)
    marked = f"<{options.field_name(name)}>"
    if choices is not None and value not in choices:
        raise FieldError(f"{marked} is '{value}'; {one_of(str(value), choices)}")
    for number in value if isinstance(value, list) else getattr(value, "numbers", [value]):
        shown = value if isinstance(value, list) else number
        if isinstance(number, float):
            require(math.isfinite(number), f"{marked} is {shown}; it must be a finite number")
        if range_ is not None and number is not None:
            require(range_.within(number), f"{marked} is {shown}; {range_.must}")


@cache
def _choices(options: type) -> dict[str, tuple[Any, ...]]:
    """Return the names that each field of `Literal` type takes."""
    return {name: get_args(hint) for name, hint in get_type_hints(options).items() if get_origin(hint) is Literal}
