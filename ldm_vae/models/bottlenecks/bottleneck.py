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
    """[B, c, h, w], float32: what the decoder takes."""
    mean: Tensor
    """[B, c, h, w], float32: the posterior's mean, or `z` itself where nothing is random."""
    posterior_logvar: Tensor | None = None
    """[B, c, h, w], float32: the posterior's log-variance; None where nothing is random."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Scalars that the bottleneck itself asks to be trained on, by name, free of batch size and resolution."""
    stored: dict[str, Tensor] = field(default_factory=dict)
    """What `encode` writes of the latent, by name; `from_stored` takes it back."""


class Bottleneck(ABC):
    """From the encoder's output to the latent. It holds no weights of its own but those of the autoencoder."""

    @abstractmethod
    def hidden_channels(self, latent_channels: int) -> int:
        """Channels of the encoder's output, for so many of the latent."""

    @abstractmethod
    def __call__(self, hidden: Tensor, noise: Tensor | None = None) -> Latent:
        """Make the latent.

        Args:
            hidden: [B, hidden_channels, h, w], the encoder's output, in any floating-point type.
            noise: [B, c, h, w], standard normal, where the posterior is sampled; None: its mean is taken.
        """

    @abstractmethod
    def from_stored(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return z, [B, c, h, w], as it is without noise, of what `Latent.stored` held."""
