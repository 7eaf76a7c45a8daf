"""Which columns the files of another trainer's layout have, stated before the first is written.

Every shard has to have the same, whoever writes it and whatever it holds, so they follow from what the source says of
its columns; where it says nothing, as tar files do, from its first samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from datasets import ClassLabel, Value

from ldm_vae.images.cells import CAPTION_FILE, JSON_COLUMNS
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.folder_dataset import TEXT
from ldm_vae.images.streaming import ImageStream
from ldm_vae.latents.layouts.columns import OTHERS, ColumnKind, Columns, common_kind

_FIRST_SAMPLES = 5
_KINDS: dict[str, ColumnKind] = {"string": "text", "large_string": "text", "bool": "bool", "uint64": "json"}


def find_columns(images: ImageCollection | ImageStream) -> Columns:
    """Return the columns of a collection but for pictures and labels."""
    features = {name: feature for name, feature in images.features.items() if name != images.label_column}
    kinds = {TEXT if name == CAPTION_FILE else name: _kind(feature) for name, feature in features.items()}
    if JSON_COLUMNS not in features:
        return Columns(kinds=kinds)
    del kinds[JSON_COLUMNS]
    found: dict[str, list[Any]] = {}
    for columns in _first_columns(images):
        for name, value in columns.items():
            if name not in (OTHERS, images.label_column):
                found.setdefault(name, []).append(value)
    return Columns(kinds={**kinds, **{name: common_kind(values) for name, values in found.items()}}, has_others=True)


def _kind(feature: Any) -> ColumnKind:
    if isinstance(feature, ClassLabel):
        return "int"
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if dtype in _KINDS or not dtype.startswith(("int", "uint", "float")):
        return _KINDS.get(dtype, "json")
    return "float" if dtype.startswith("float") else "int"


def _first_columns(images: ImageCollection | ImageStream) -> Iterator[dict[str, Any]]:
    if isinstance(images, ImageCollection):
        yield from (images.row(i) for i in range(min(_FIRST_SAMPLES, len(images))))
        return
    for example in islice(images.dataset, _FIRST_SAMPLES):
        yield images.cells.columns({name: value for name, value in example.items() if name != images.image_column})
