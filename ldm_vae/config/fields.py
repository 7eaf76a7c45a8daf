"""The fields of a dataclass of settings, by dotted name, with what `--help`, files and command lines need to know."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ldm_vae.config.rules import Range


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """A setting."""

    name: str
    """The field's dotted name: `train.batch_size`."""
    type: Any
    """`str`, `int`, `float`, `bool` or a `Literal`; for a list, the type of its entries."""
    many: bool
    """Whether the value is a list."""
    optional: bool
    """Whether the value may be None."""
    default: Any
    """The value where none is given; None for required fields."""
    required: bool
    """Whether a value must be given."""
    doc: str
    """The field's docstring, in one line."""
    range: Range | None
    """Where the value may lie; None where it may be any."""
    path: Literal["local", "place", "source"] | None
    """Whether the value names a place here, or a source that may be elsewhere; None where it names neither."""
    alias: str | None
    """The field's name on the command line, where that is another one."""
    record: type | None = None
    """A dataclass that may stand for the value: `{start: 0, end: 1, to_step: 1000}` for a weight."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that the field takes; empty where it takes something else."""
        return tuple(str(choice) for choice in get_args(self.type)) if get_origin(self.type) is Literal else ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """Fields that stand together."""

    name: str
    """The section's name, such as `train`; empty for the fields of the dataclass itself."""
    doc: str
    """The docstring of the section's dataclass."""
    fields: list[FieldInfo]
    """The fields in the order of `--help`."""


@cache
def sections(options: type) -> tuple[Section, ...]:
    """Return a dataclass's own fields as the first section, and each nested dataclass as one more."""
    hints = get_type_hints(options)
    own: list[FieldInfo] = []
    nested: list[Section] = []
    for declared in _ordered(options):
        if declared.metadata.get("row"):
            continue
        hint = hints[declared.name]
        if is_dataclass(hint):
            nested += sections(hint)  # type: ignore[arg-type]
        else:
            own.append(_field_info(options, declared, hint))
    prefix = getattr(options, "section", "")
    return (Section(name=prefix, doc=inspect.getdoc(options) or "", fields=own), *nested)


@cache
def all_fields(options: type) -> dict[str, FieldInfo]:
    """Return every field of a dataclass and of those nested in it, by dotted name."""
    return {info.name: info for section in sections(options) for info in section.fields}


def row_field(options: type) -> str | None:
    """Return the name of the field that holds a row of such dataclasses; None where there is none."""
    return next((declared.name for declared in fields(options) if declared.metadata.get("row")), None)


def record_fields(info: FieldInfo) -> dict[str, FieldInfo]:
    """Return the fields of the dataclass that may stand for a value, by its own field names."""
    assert info.record is not None
    return {name: replace(part, name=f"{info.name}.{name}") for name, part in all_fields(info.record).items()}


def _ordered(options: type) -> list[Field[Any]]:
    """Return a dataclass's fields, with its own before those of its bases: what is particular to it comes first."""
    by_name = {declared.name: declared for declared in fields(options)}
    own = [by_name.pop(name) for name in inspect.get_annotations(options) if name in by_name]
    return [*own, *by_name.values()]


def _field_info(options: type, declared: Field[Any], hint: Any) -> FieldInfo:
    optional = get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint)
    if optional:
        hint = Union[tuple(part for part in get_args(hint) if part is not type(None))]
    record = next((part for part in get_args(hint) if is_dataclass(part)), None)
    if record is not None:
        (hint,) = (part for part in get_args(hint) if part is not record)
    many = get_origin(hint) is list
    required = declared.default is MISSING and declared.default_factory is MISSING
    default = declared.default if declared.default_factory is MISSING else declared.default_factory()
    section = getattr(options, "section", "")
    return FieldInfo(
        name=f"{section}.{declared.name}" if section else declared.name,
        type=get_args(hint)[0] if many else hint,
        many=many,
        optional=optional,
        default=None if required else default,
        required=required,
        doc=_docs(options).get(declared.name, ""),
        range=declared.metadata.get("range"),
        path=declared.metadata.get("path"),
        alias=declared.metadata.get("alias"),
        record=record,
    )


@cache
def _docs(options: type) -> dict[str, str]:
    """Return the docstring under each field of a class and its bases, in one line."""
    docs: dict[str, str] = {}
    for base in reversed(options.__mro__):
        if not is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
