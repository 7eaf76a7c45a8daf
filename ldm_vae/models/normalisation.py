"""(z - shift) · scale: from the autoencoder's own latents to those that a diffusion model sees, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SCALING_FIELDS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Fields of config.json that say how a pipeline of diffusers normalises latents."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Shift and scale, float32, [1, c or 1, 1, 1]."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Normalisation:
        """Read `SCALING_FIELDS` as diffusers' pipelines do.

        Latents become (z - latents_mean) · scaling_factor / latents_std where both statistics are there (SDXL), else
        (z - shift_factor) · scaling_factor (SD3 and FLUX; SD has no shift).
        """
        factor, mean, std = config["scaling_factor"], config.get("latents_mean"), config.get("latents_std")
        shift, scale = torch.tensor([config.get("shift_factor") or 0.0]), torch.tensor([factor])
        if mean is not None and std is not None:
            shift, scale = torch.tensor(mean), factor / torch.tensor(std)
        return cls(shift=shift.float().view(1, -1, 1, 1), scale=scale.float().view(1, -1, 1, 1))

    def to(self, device: torch.device) -> Normalisation:
        """Return the same on a device."""
        return Normalisation(shift=self.shift.to(device), scale=self.scale.to(device))

    def normalise(self, z: Tensor) -> Tensor:
        """Return (z - shift) · scale, of latents [B, c, h, w] as the autoencoder makes them."""
        return (z - self.shift) * self.scale

    def restore(self, latents: Tensor) -> Tensor:
        """Return latents / scale + shift, of [B, c, h, w]."""
        return latents / self.scale + self.shift
