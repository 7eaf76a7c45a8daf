"""What the step, encode and decode need of a bottleneck."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from ldm_vae.models.bottlenecks.codes import CodeStatistics


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
    statistics: CodeStatistics | None = None
    """Where the bottleneck itself learns from the global batch: sums over this micro-batch."""


class Bottleneck(ABC):
    """Makes a latent of the encoder's output. It has no weights beside the autoencoder's own."""

    name: ClassVar[str]
    """As `model.bottleneck` has it."""
    modes: ClassVar[tuple[str, ...]]
    """What `encode` can store of its latents, by the names of `--mode`; the first is its default."""
    losses: ClassVar[tuple[str, ...]] = ()
    """Names in `Latent.losses`."""
    figures: ClassVar[tuple[str, ...]] = ()
    """Names of what `measure` returns."""
    has_posterior: ClassVar[bool] = False
    """Whether latents are drawn from a posterior, which has a KL divergence."""

    @property
    def codes(self) -> Tensor | None:
        """The codes that latents are made of, [n, d], float32; None where their number isn't finite."""
        return None

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

    # Training, for bottlenecks that learn without gradients

    def begin_training(self, *, from_scratch: bool) -> nn.Module | None:
        """Return what is trained, as buffers, and belongs into the checkpoint; None where nothing is.

        Args:
            from_scratch: Whether the model's weights are untrained.
        """
        return None

    def measure(self, batch: CodeStatistics) -> dict[str, Tensor]:
        """Return the global batch's figures, scalars by the names in `figures`."""
        return {}

    def learn(self, batch: CodeStatistics, *, finite: Tensor) -> None:
        """Learn from the global batch, where the update is finite: [], bool, on the device."""
        raise NotImplementedError(f"{self.name} learns nothing without gradients")
