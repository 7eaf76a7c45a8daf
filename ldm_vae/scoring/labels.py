"""Which pictures are known to be normal, and which are known not to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ldm_vae.config.rules import FieldError
from ldm_vae.images.collection import ImageCollection
from ldm_vae.system.telling import tell
from ldm_vae.system.text import printable

_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of pictures, by their numbers."""

    of: dict[int, str]
    """Those that have one."""
    normal: str
    """What normal pictures are labelled."""
    origin: str
    """In words, where the labels come from."""

    def is_anomaly(self, index: int) -> bool | None:
        """Whether a picture is an anomaly; None where that isn't known."""
        label = self.of.get(index)
        return None if label is None else label != self.normal


def read_labels(collection: ImageCollection, indices: Sequence[int], *, column: str | None, normal: str) -> Labels:
    """Return the labels of pictures, from a column or, without one, from the data's classes.

    A column's values count as they are written; those of a class column are the classes' names. Without a column,
    classes none of which is called `normal` say nothing of what is normal, which is told.

    Args:
        collection: The pictures.
        indices: Which of them are scored.
        column: The option `label_column`.
        normal: The option `normal_label`.

    Raises:
        FieldError: There is no such column, or it calls no picture normal.
    """
    if column is not None:
        labels = Labels(of=_of_column(collection, indices, column), normal=normal, origin=f"column {column}")
        if not labels.of and column not in collection.columns:
            known = ", ".join(map(printable, collection.row(indices[0]))) or "none"
            raise FieldError(
                f"<label_column> is '{printable(column)}', which the data don't have; their columns: {known}"
            )
        if normal not in labels.of.values():
            raise FieldError(
                f"<normal_label> is '{printable(normal)}', which no picture has in the column {printable(column)}; "
                f"it says {_some(labels.of)}"
            )
        return labels
    if collection.label_column is None:
        return Labels(of={}, normal=normal, origin="none")
    labels = Labels(of=_of_column(collection, indices, collection.label_column), normal=normal, origin="classes")
    if normal not in labels.of.values():
        tell(
            f"data: no class is called '{printable(normal)}' (they are {_some(labels.of)}), so there is no AUROC; "
            f"normal_label says which is the normal one"
        )
        return Labels(of={}, normal=normal, origin="none")
    return labels


def _of_column(collection: ImageCollection, indices: Sequence[int], column: str) -> dict[int, str]:
    names = collection.class_names(column)
    labels = {}
    for index in indices:
        value = collection.row(index).get(column)
        if value is None or value == "" or (names is not None and value < 0):  # -1: not labelled
            continue
        labels[index] = str(value) if names is None else names[value]
    return labels


def _some(labels: dict[int, str]) -> str:
    """Return the different labels for a message."""
    different = sorted(set(labels.values()))
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    return (", ".join(f"'{printable(label)}'" for label in different[:_NAMED]) or "nothing") + more
