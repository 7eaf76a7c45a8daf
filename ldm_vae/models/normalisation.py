"""(z - shift) · scale: from the autoencoder's own latents to those that a diffusion model sees, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

SCALING_FIELDS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Fields of config.json that say how a pipeline of diffusers normalises latents."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Shift and scale, float32, [1, c·p·p or 1, 1, 1], of patches of p x p latent pixels."""

    shift: Tensor
    scale: Tensor
    patch_size: int = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Normalisation:
        """Read `SCALING_FIELDS` as diffusers' pipelines do.

        Latents become (z - latents_mean) · scaling_factor / latents_std where both statistics are there (SDXL), else
        (z - shift_factor) · scaling_factor (SD3 and FLUX; SD has no shift). With a `patch_size`, the patches of z
        become channels before that (FLUX.2).
        """
        factor, mean, std = config["scaling_factor"], config.get("latents_mean"), config.get("latents_std")
        shift, scale = torch.tensor([config.get("shift_factor") or 0.0]), torch.tensor([factor])
        if mean is not None and std is not None:
            shift, scale = torch.tensor(mean), factor / torch.tensor(std)
        return cls(
            shift=shift.float().view(1, -1, 1, 1),
            scale=scale.float().view(1, -1, 1, 1),
            patch_size=config.get("patch_size") or 1,
        )

    def to(self, device: torch.device) -> Normalisation:
        """Return the same on a device."""
        return replace(self, shift=self.shift.to(device), scale=self.scale.to(device))

    def normalise(self, z: Tensor) -> Tensor:
        """Return (z - shift) · scale, [B, c·p·p, h / p, w / p], of latents [B, c, h, w] as the model makes them."""
        return (pixel_unshuffle(z, self.patch_size) - self.shift) * self.scale

    def restore(self, latents: Tensor) -> Tensor:
        """Return latents / scale + shift, [B, c, h, w], of normalised latents [B, c·p·p, h / p, w / p]."""
        return pixel_shuffle(latents / self.scale + self.shift, self.patch_size)

    def translate(self, z: Tensor, *, to: Normalisation) -> Tensor:
        """Return the latents of another model, [B, c, h, w], that are the same as these once both are normalised."""
        normalised = pixel_shuffle(self.normalise(z), self.patch_size)
        return to.restore(pixel_unshuffle(normalised, to.patch_size))
