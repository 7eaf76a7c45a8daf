"""The variational bottleneck: a diagonal Gaussian posterior (Kingma & Welling 2014)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_vae.config.names import Posterior
from ldm_vae.models.bottlenecks.bottleneck import Bottleneck, Latent

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # as published, and as diffusers clamps


class Gaussian(Bottleneck):
    """The encoder gives mean and log-variance; a sample is mean + std · noise.

    Args:
        posterior: Where std comes from: `learnt` from the encoder, `fixed` from `std`, `floor` from the encoder and
            not below `std`.
        std: For `fixed` and `floor`.
    """

    def __init__(self, *, posterior: Posterior = "learnt", std: float = 1.0) -> None:
        self._posterior = posterior
        self._logvar = 2 * math.log(std)

    name = "gaussian"
    modes = ("moments", "mean", "sample")
    has_posterior = True

    def hidden_channels(self, latent_channels: int) -> int:
        """Return twice the channels of the latent, for mean and log-variance."""
        return 2 * latent_channels

    def __call__(self, hidden: Tensor, noise: Tensor | None = None) -> Latent:
        """Sample the posterior, as `Bottleneck` says; moments are float32, whatever type `hidden` has."""
        mean, logvar = hidden.float().chunk(2, dim=1)
        if self._posterior == "fixed":
            logvar = torch.full_like(logvar, self._logvar)
        least = self._logvar if self._posterior == "floor" else LOGVAR_MIN
        logvar = logvar.clamp(least, LOGVAR_MAX)
        std = torch.exp(0.5 * logvar)
        z = mean if noise is None else mean + std * noise
        return Latent(z=z, mean=mean, posterior_logvar=logvar, stored={"mean": mean, "std": std})

    def from_stored(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the stored mean."""
        return stored["mean"]
