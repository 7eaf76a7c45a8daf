"""The variational bottleneck: a diagonal Gaussian posterior (Kingma & Welling 2014)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_vae.models.bottlenecks.bottleneck import Bottleneck, Latent

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # as published, and as diffusers clamps


class Gaussian(Bottleneck):
    """The encoder gives mean and log-variance; a sample is mean + std · noise."""

    def hidden_channels(self, latent_channels: int) -> int:
        """Return twice the channels of the latent, for mean and log-variance."""
        return 2 * latent_channels

    def __call__(self, hidden: Tensor, noise: Tensor | None = None) -> Latent:
        """Sample the posterior, as `Bottleneck` says; moments are float32, whatever type `hidden` has."""
        mean, logvar = hidden.float().chunk(2, dim=1)
        logvar = logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)
        std = torch.exp(0.5 * logvar)
        z = mean if noise is None else mean + std * noise
        return Latent(z=z, mean=mean, posterior_logvar=logvar, stored={"mean": mean, "std": std})

    def from_stored(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the stored mean."""
        return stored["mean"]
