"""The bottleneck of a plain autoencoder: the encoder's output is the latent."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm_vae.models.bottlenecks.bottleneck import Bottleneck, Latent


class Deterministic(Bottleneck):
    """Nothing is random, and nothing is lost."""

    name = "deterministic"
    modes = ("mean",)

    def hidden_channels(self, latent_channels: int) -> int:
        """Return the channels of the latent."""
        return latent_channels

    def __call__(self, hidden: Tensor, noise: Tensor | None = None) -> Latent:
        """Take the encoder's output in float32. Noise has no effect."""
        z = hidden.float()
        return Latent(z=z, mean=z, stored={"latents": z})

    def from_stored(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the stored latents."""
        return stored["latents"]
