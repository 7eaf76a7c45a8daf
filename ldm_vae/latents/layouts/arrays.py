"""Rows of latents as layouts take them: a shard at once, and arrays as numpy has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_vae.latents.dataset import LatentDataset


@dataclass(kw_only=True)
class ShardRows:
    """The rows of one shard."""

    tensors: Mapping[str, Tensor]
    """As they are stored, [n, ...]."""
    lines: list[dict[str, Any]]
    """What is known of each row: `sample`, `source` and, where there are some, `label` and other `columns`."""
    has_one_shape: bool
    """Whether all rows of the output have the shape of these."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the tensors as numpy has them, which knows no bfloat16."""
        return {
            name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for name, tensor in self.tensors.items()
        }


def read_rows(dataset: LatentDataset, rows: range, lines: Iterable[dict[str, Any]]) -> ShardRows:
    """Read a shard's rows, taking their lines from the iterator."""
    moments = [dataset.moments(row) for row in rows]
    return ShardRows(
        tensors={name: torch.stack([each[name] for each in moments]) for name in moments[0]},
        lines=[line for _, line in zip(rows, lines, strict=False)],
        has_one_shape=has_one_shape(dataset),
    )


def has_one_shape(dataset: LatentDataset) -> bool:
    """Whether all latents have the same shape."""
    return len(dataset.shards.shapes()) == 1
