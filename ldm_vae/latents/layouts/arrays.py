"""Rows of latents as numpy arrays."""

from __future__ import annotations

import numpy as np
import torch

from ldm_vae.latents.dataset import LatentDataset


def storable(dataset: LatentDataset, row: int, name: str) -> np.ndarray:
    """Return a row's tensor as numpy has it, which knows no bfloat16."""
    tensor = dataset.moments(row)[name]
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def has_one_shape(dataset: LatentDataset) -> bool:
    """Whether all latents have the same shape."""
    return len(dataset.shards.shapes()) == 1
