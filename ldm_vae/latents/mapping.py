"""Shards mapped into memory: a row is read without its shard, and a file that isn't the one it should be is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "U8": torch.uint8, "U16": torch.uint16, "I32": torch.int32,
}  # fmt: skip
_LONGEST_HEADER = 1 << 24
MEND = "`ldm-vae latents verify` tells what else is wrong, and starting the same encode again mends it"


def read_origin(path: Path) -> dict[str, str] | None:
    """Return a shard's own account of its `plan` and `stem`; None where it has none that can be read."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return _origin(json.loads(file.read(min(length, _LONGEST_HEADER))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def map_shard(path: Path, *, entry: dict[str, Any], plan: str, names: list[str]) -> dict[str, Tensor]:
    """Map a shard into memory, without keeping it open; nothing is read but its header.

    Args:
        path: The shard's file.
        entry: What the index says of it: its `size` in bytes, `count` of rows and `shape` of a latent.
        plan: The digest of the plan that it belongs to.
        names: The tensors of latents that it holds.

    Returns:
        Its tensors by name, each with a row for each image.

    Raises:
        ValueError: The file is missing, cut off, no safetensors file, the shard of another output, or another shard.
    """
    size = path.stat().st_size if path.exists() else -1
    if size != entry["size"] or size < 8:
        what = "is missing" if size < 0 else f"has {size} bytes instead of {entry['size']}"
        raise ValueError(f"{path} {what}; {MEND}")
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    start = 8 + int(content[:8].view(torch.int64))
    try:
        assert 8 < start <= min(size, _LONGEST_HEADER), "a header of no possible length"
        header = json.loads(content[8:start].numpy().tobytes())
        origin = _origin(header)
        del header["__metadata__"]
        tensors = {name: _view(content[start:], **value) for name, value in header.items()}
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
    if origin["stem"] != path.stem:
        raise ValueError(f"{path} is a copy of {origin['stem']}; {MEND}")
    return tensors


def _origin(header: dict[str, Any]) -> dict[str, str]:
    origin = json.loads(header["__metadata__"]["ldm_vae"])
    return {"plan": origin["plan"], "stem": origin["stem"]}


def _view(data: Tensor, *, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    begin, end = data_offsets
    assert 0 <= begin <= end <= len(data), "offsets outside of the file"
    return data[begin:end].view(TORCH_DTYPES[dtype]).view(shape)
