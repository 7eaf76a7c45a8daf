"""The larger image that an export checks strips on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOSAIC_SIDE = 2
"""Images in a row, and rows."""


def mosaic(batches: Sequence[Tensor]) -> Tensor:
    """Return images of the first one's shape as one larger image; where there are too few, some are there again."""
    images = torch.cat([batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]])
    picked = [images[i % len(images)] for i in range(MOSAIC_SIDE**2)]
    rows = [torch.cat(picked[i : i + MOSAIC_SIDE], dim=2) for i in range(0, len(picked), MOSAIC_SIDE)]
    return torch.cat(rows, dim=1)[None]
