"""What the training step needs of a discriminator, whatever it looks at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

Sight: TypeAlias = Tensor | tuple[Tensor, ...]
"""What a discriminator makes of pictures before anything that it trains: the pictures, or a frozen network's maps."""


class Judgement(NamedTuple):
    """What D says of images and their reconstructions."""

    real: Tensor
    """Logits of the images, [B, n, h, w], float32."""
    fake: Tensor
    """Logits of the reconstructions."""
    at: Tensor
    """What was judged of the images: with `differentiable` it requires a gradient, which `real` has a graph for."""


class Discriminator(nn.Module, ABC):
    """Tells images from reconstructions."""

    frozen: nn.Module | None = None
    """The network that it looks through, which is neither trained nor part of a checkpoint."""

    @abstractmethod
    def look(self, images: Tensor) -> Sight:
        """Return what is judged of images [B, C, H, W] in [-1, 1], with a graph down to them."""

    @abstractmethod
    def logits(self, sight: Sight) -> Tensor:
        """Return the logits, [B, n, h, w], float32, of what `look` returned."""

    @abstractmethod
    def forward(self, images: Tensor, reconstruction: Sight, *, differentiable: bool = False) -> Judgement:
        """Judge real and reconstructed images.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstruction: What `look` returned of the reconstructions, without a graph.
            differentiable: Let the gradient at `Judgement.at` be differentiated itself.
        """

    @abstractmethod
    def compile_networks(self) -> None:
        """Compile what runs in every update, in place."""


def detached(sight: Sight) -> Sight:
    """Return what was seen without its graph."""
    return tuple(each.detach() for each in sight) if isinstance(sight, tuple) else sight.detach()
