"""What the step, encode and decode need of a bottleneck."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Latent:
    """What a bottleneck makes of the encoder's output."""

    z: Tensor
    """The decoder's input, [B, c, h, w], float32."""
    mean: Tensor
    """The posterior's mean, or `z` itself where nothing is random, [B, c, h, w], float32."""
    posterior_logvar: Tensor | None = None
    """The posterior's log-variance, [B, c, h, w], float32; None where nothing is random."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Losses that the bottleneck itself adds, by name: scalars that depend neither on batch size nor on resolution."""
    stored: dict[str, Tensor] = field(default_factory=dict)
    """What `encode` writes of the latent, by name; `from_stored` takes it back."""


class Bottleneck(ABC):
    """Makes a latent of the encoder's output. It has no weights beside the autoencoder's own."""

    @abstractmethod
    def hidden_channels(self, latent_channels: int) -> int:
        """Return the channels of the encoder's output, from the channels of the latent."""

    @abstractmethod
    def __call__(self, hidden: Tensor, noise: Tensor | None = None) -> Latent:
        """Make the latent.

        Args:
            hidden: [B, hidden_channels, h, w], the encoder's output, in any floating-point type.
            noise: [B, c, h, w], standard normal. With None the posterior's mean is taken instead of a sample.
        """

    @abstractmethod
    def from_stored(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return z without noise, [B, c, h, w], from the tensors of `Latent.stored`."""
