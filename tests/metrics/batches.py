"""Random batches for metrics."""

from __future__ import annotations

import torch
from torch import Tensor


def make_batch(*, num_images: int, seed: int = 0, side: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, reconstructions, posterior means and standard deviations."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    images = normal(num_images, 3, side, side).clamp(-1, 1)
    error = normal(num_images, 1, 1, 1).exp() * 0.1  # images of very different quality
    mean = 5 + 3 * normal(num_images, 4, side // 4, side // 4)
    return images, images + error * normal(*images.shape), mean, normal(*mean.shape).exp() * 0.3
