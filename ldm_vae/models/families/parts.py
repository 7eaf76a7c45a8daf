"""What a family gives: the halves of its model, and an image encoded and decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


class Reconstruction(NamedTuple):
    """Images encoded and decoded without noise, float32."""

    mean: Tensor
    """The posterior's mean, [B, c, h, w]."""
    std: Tensor | None
    """The posterior's standard deviation, [B, c, h, w]; None where nothing is random."""
    images: Tensor
    """The decoded mean, [B, C, H, W], about in [-1, 1]."""
    indices: Tensor | None = None
    """Which codes the latents are, [B, 1, h, w]; None where their number isn't finite."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """Encoder or decoder, with the layers at its borders; `first` is the whole of it where its input goes further."""

    network: nn.Module
    first: nn.Module
    last: nn.Module


def weight_gradient(layer: nn.Conv2d, features: Tensor, grad_output: Tensor) -> Tensor:
    """Return the gradient at a convolution's weight, float32, of a loss of its output; its stride is 1.

    Args:
        layer: The convolution.
        features: [B, width, h, w], its input.
        grad_output: [B, C, h, w], the loss's gradient at its output.
    """
    gradient = conv2d_weight(
        features, layer.weight.shape, grad_output.to(features.dtype), stride=1, padding=layer.padding
    )
    return gradient.float()
