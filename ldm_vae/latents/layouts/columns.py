"""The other columns of a collection, such as captions, in layouts whose files have columns of a type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ldm_vae.latents.shards import NO_LABEL

ColumnKind = Literal["text", "int", "float", "bool", "json"]
OWN: dict[str, ColumnKind] = {"label": "int", "sample": "int", "source": "text"}
"""Columns that every row has."""
OTHERS = "other_columns"
"""Column with what no other column takes: a JSON object, or nothing."""
_LARGEST = 2**63


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns the rows of an output have beside their latents and `OWN`."""

    kinds: Mapping[str, ColumnKind]
    has_others: bool = False
    """Whether rows may have further ones, or values of other kinds, which go to `OTHERS`."""

    def to_json(self) -> dict[str, Any]:
        """Return what a plan says of them."""
        return {"kinds": dict(self.kinds), "has_others": self.has_others}

    def in_files(self) -> dict[str, ColumnKind]:
        """Return the columns that files have, by the names that they have in the collection."""
        return {**self.kinds, **({OTHERS: "json"} if self.has_others else {})}

    def values(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's value of each column, None where it has none."""
        given = line.get("columns", {})
        if not self.has_others:
            return {name: given.get(name) for name in self.kinds}
        fitting = {name for name, value in given.items() if name in self.kinds and fits(value, self.kinds[name])}
        others = {name: value for name, value in given.items() if name not in fitting}
        return {**{name: given[name] if name in fitting else None for name in self.kinds}, OTHERS: others or None}


def own_values(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's values of `OWN`."""
    return {"label": line.get("label", NO_LABEL), "sample": line["sample"], "source": line["source"]}


def file_column(name: str, *, tensors: Iterable[str]) -> str:
    """Return what a column is called in a file that has `tensors` and `OWN` too: `label_` where `label` is taken."""
    taken = {*tensors, *OWN}
    while name in taken:
        name += "_"
    return name


def fits(value: Any, kind: ColumnKind) -> bool:
    """Whether a value is of a kind, or none."""
    return value is None or kind == "json" or common_kind([value]) in (kind, *(["int"] if kind == "float" else []))


def common_kind(values: Collection[Any]) -> ColumnKind:
    """Return the kind that takes all values, none of which counts for nothing: `json` where there are several."""
    types = {type(value) for value in values if value is not None}
    if types == {str}:
        return "text"
    if types == {bool}:
        return "bool"
    if types == {int}:
        return "int" if all(-_LARGEST <= value < _LARGEST for value in values if value is not None) else "json"
    return "float" if types in ({float}, {int, float}) else "json"


def read_columns(stated: Mapping[str, Any]) -> Columns:
    """Return the columns that a plan states."""
    kinds: dict[str, Any] = dict(stated["kinds"])
    assert all(kind in get_args(ColumnKind) for kind in kinds.values())
    return Columns(kinds=kinds, has_others=stated["has_others"])
