"""VQModel's nearest codes, some rows of the latent at a time: all distances at once may be more than the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import VectorQuantizer
from torch import Tensor

SHARE = 0.5  # of the budget that distances may take


@dataclass(frozen=True)
class QuantiseInParts:
    """What stands in for the forward of a VectorQuantizer. Codes are the same; the loss is so up to rounding."""

    quantizer: VectorQuantizer
    budget_bytes: int
    whole: Callable[[Tensor], Any]

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Return the codes of latents [B, d, h, w], the loss, and in the tuple's last place the codes' numbers."""
        position = latents.element_size() * (self.quantizer.n_e + 4 * self.quantizer.vq_embed_dim)
        rows = max(1, int(SHARE * self.budget_bytes) // (position * latents.shape[3]))
        parts = [part for image in latents.split(1) for part in image.split(rows, dim=2)]
        results = [self.whole(part) for part in parts]
        weights = [part.numel() / latents.numel() for part in parts]
        loss = torch.stack([weight * loss for weight, (_, loss, _) in zip(weights, results, strict=True)]).sum()
        codes = torch.cat([part for part, _, _ in results], dim=2)
        indices = torch.cat([numbers for _, _, (_, _, numbers) in results])
        return torch.cat(codes.split(latents.shape[2], dim=2)), loss, (None, None, indices)
