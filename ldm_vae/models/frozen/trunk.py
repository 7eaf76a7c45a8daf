"""What every frozen vision network has: features at depths, and how pictures are scaled for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ldm_vae.models.resizing import Interpolation

Depth = Literal["last", "quarters", "all"]
"""Which features a network gives: what it ends with; those after each quarter of its blocks; or those of all blocks.

`last` and `quarters` are maps [B, C, h, w]. `all` are whatever tokens there are, those that stand for no place
included: [B, C, tokens, 1]."""


class Trunk(nn.Module, ABC):
    """A network without what makes pictures ready for it but their normalisation."""

    patch_size: int
    """Side of the square of pixels that a place of the last map stands for; it divides the sides of pictures."""
    interpolation: Interpolation
    """How pictures are scaled for it."""
    channels: Sequence[int]
    """Channels of each of the features."""
    strides: Sequence[int]
    """Pixels between places of each of the features."""

    @abstractmethod
    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Return the features, shallow to deep, of images [B, 3, H, W] in [-1, 1]."""
