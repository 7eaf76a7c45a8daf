"""Each channel of images by itself: how near its reconstruction comes, and which values it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.metrics.sums import Sums
from ldm_vae.system.float64 import in_float64


@dataclass(frozen=True, kw_only=True)
class ImageChannelSummary:
    """A number for each channel of the images."""

    psnr: list[float]
    """Mean over images of each one's PSNR in dB in the channel."""
    mean: list[float]
    """Mean over images and pixels of the images' own values, in levels of 0 to 255."""
    std: list[float]
    """Standard deviation of these about their mean."""


class ImageChannels:
    """Sums for each channel.

    Args:
        num_channels: Channels of the images.
        device: Where the sums are kept.
    """

    def __init__(self, num_channels: int, *, device: torch.device | str = "cpu") -> None:
        sizes = dict.fromkeys(("psnr", "mean", "square"), num_channels)
        self._sums = Sums({"images": 1, **sizes}, device=device)

    def update(self, levels: Tensor, reconstructed: Tensor) -> None:
        """Add a batch of images and their reconstructions, [B, C, H, W], in levels of 0 to 255."""
        values = in_float64(levels)
        error = (values - in_float64(reconstructed)).square().mean(dim=(2, 3))
        exact = 1 / levels[0, 0].numel()  # an exact channel counts as one that is off by 1 in a single pixel
        self._sums.add("images", torch.tensor(len(levels)))
        self._sums.add("psnr", (10 * torch.log10(255**2 / error.clamp(min=exact))).sum(0))
        self._sums.add("mean", values.mean(dim=(2, 3)).sum(0))
        self._sums.add("square", values.square().mean(dim=(2, 3)).sum(0))

    def state(self) -> dict[str, Tensor]:
        """Return all sums by name."""
        return self._sums.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all sums by those of `state`."""
        self._sums.load_state(state)

    def compute(self) -> ImageChannelSummary:
        """Return the figures over all that was added; each image counts alike, whatever its size."""
        psnr, mean, square = (
            (self._sums[name] / self._sums["images"]).tolist() for name in ("psnr", "mean", "square")
        )
        deviations = [math.sqrt(max(0.0, s - m * m)) for s, m in zip(square, mean, strict=True)]
        return ImageChannelSummary(psnr=psnr, mean=mean, std=deviations)
