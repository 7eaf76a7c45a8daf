"""Shards opened without reading them: a row is read by itself, and a file that isn't the one it should be is named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_vae.latents.blocks import BlockCache
from ldm_vae.system.paths import inside
from ldm_vae.system.store import Store, StoreError

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "U8": torch.uint8, "U16": torch.uint16, "I32": torch.int32,
}  # fmt: skip
_LONGEST_HEADER = 1 << 24
MEND = "`ldm-vae latents verify` tells what else is wrong, and starting the same encode again mends it"


class Rows(Protocol):
    """A shard's tensor: mapped into memory, or read by range requests."""

    @property
    def shape(self) -> torch.Size:
        """Its shape [n, ...]."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Tensor: ...


class RangeRows:
    """Rows of a tensor that are read when they are asked for, from a block cache."""

    def __init__(self, cache: BlockCache, name: str, *, dtype: str, shape: list[int], begin: int, end: int) -> None:
        self._cache, self._name, self._begin, self._dtype = cache, name, begin, TORCH_DTYPES[dtype]
        self.shape = torch.Size(shape)
        self._row_bytes = math.prod(shape[1:]) * self._dtype.itemsize
        assert begin + len(self) * self._row_bytes == end, "offsets of another length"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> Tensor:
        start, stop, _ = (rows if isinstance(rows, slice) else slice(rows, rows + 1)).indices(len(self))
        content = self._cache.read(self._name, self._begin + start * self._row_bytes, (stop - start) * self._row_bytes)
        if len(content) != (stop - start) * self._row_bytes:
            raise ValueError(f"{self._cache.store.place(self._name)} is cut off; {MEND}")
        tensor = torch.frombuffer(bytearray(content), dtype=self._dtype) if content else torch.empty(0)
        tensor = tensor.to(self._dtype).view(stop - start, *self.shape[1:])
        return tensor if isinstance(rows, slice) else tensor[0]


def read_origin(store: Store, name: str) -> dict[str, str] | None:
    """Return a shard's own account of its `plan` and `stem`; None where it has none that can be read."""
    try:
        length = int.from_bytes(store.read_range(name, 0, 8), "little")
        return _origin(json.loads(store.read_range(name, 8, min(length, _LONGEST_HEADER))))
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def open_shard(
    store: Store, *, entry: Mapping[str, Any], plan: str, names: list[str], cache: BlockCache
) -> Mapping[str, Rows]:
    """Open a shard; nothing is read but its header. One that is here is mapped into memory and not kept open.

    Args:
        store: Where the shard is.
        entry: What the index says of it: its `file`, `size` in bytes, `count` of rows and `shape` of a latent.
        plan: The digest of the plan that it belongs to.
        names: The tensors of latents that it holds.
        cache: What is read of a shard that isn't here.

    Returns:
        Its tensors by name, each with a row for each image.

    Raises:
        ValueError: The file is missing, cut off, no safetensors file, the shard of another output, or another shard.
    """
    name = entry["file"]
    if store.folder is not None:
        inside(store.folder, name)
    path = store.place(name)
    size = store.size(name) if store.exists(name) else -1
    if size != entry["size"] or size < 8:
        what = "is missing" if size < 0 else f"has {size} bytes instead of {entry['size']}"
        raise ValueError(f"{path} {what}; {MEND}")
    try:
        origin, tensors = _tensors(store, name, size=size, cache=cache)
        shapes = {name: list(tensors[name].shape) for name in (*names, "sample")}
        assert all(len(tensor) == entry["count"] for tensor in tensors.values()), "another number of rows"
        assert all(shapes[name][1:] == entry["shape"] for name in names), "latents of another shape"
        assert shapes["sample"] == [entry["count"]], "sample of another shape"
    except (
        ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError, AssertionError, RecursionError
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {MEND}") from None
    if origin["plan"] != plan:
        raise ValueError(f"{path} belongs to another output; {MEND}")
    if origin["stem"] != PurePosixPath(name).stem:
        raise ValueError(f"{path} is a copy of {origin['stem']}; {MEND}")
    return tensors


def _tensors(store: Store, name: str, *, size: int, cache: BlockCache) -> tuple[dict[str, str], dict[str, Rows]]:
    """Return a shard's account of itself, and its tensors."""
    content = None
    if store.folder is not None:
        content = torch.from_file(store.place(name), shared=False, size=size, dtype=torch.uint8)
        start = 8 + int(content[:8].view(torch.int64))
    else:
        start = 8 + int.from_bytes(cache.read(name, 0, 8), "little", signed=True)
    assert 8 < start <= min(size, _LONGEST_HEADER), "a header of no possible length"
    header = json.loads(cache.read(name, 8, start - 8) if content is None else content[8:start].numpy().tobytes())
    origin = _origin(header)
    del header["__metadata__"]
    tensors: dict[str, Rows] = {}
    for key, value in header.items():
        begin, end = value["data_offsets"]
        assert 0 <= begin <= end <= size - start, "offsets outside of the file"
        if content is not None:
            tensors[key] = content[start + begin : start + end].view(TORCH_DTYPES[value["dtype"]]).view(value["shape"])
        else:
            tensors[key] = RangeRows(
                cache, name, dtype=value["dtype"], shape=value["shape"], begin=start + begin, end=start + end
            )
    return origin, tensors


def _origin(header: dict[str, Any]) -> dict[str, str]:
    origin = json.loads(header["__metadata__"]["ldm_vae"])
    return {"plan": origin["plan"], "stem": origin["stem"]}
