"""A control: an autoencoder of perfectly the same reconstructions, whose latents are hard to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder

BLOCK = 4
"""Side of the blocks of neighbours that are mixed, in latent pixels."""


class ScrambledAutoencoder(InferenceAutoencoder):
    """An autoencoder whose latent's elements are turned, block by block, by random orthogonal matrices.

    A block's matrix is its own, so nothing that is learnt of one place holds at another. Its transpose undoes it:
    decoding gives what it gave before, up to rounding. A probe that doesn't rank it last can't tell good latents from
    bad ones at its budget.

    Args:
        family: The autoencoder.
        side: Height and width of the latents.
        bf16: Compute in bf16; else in exact float32.
        device: Where.
        seed: Of the matrices.
    """

    def __init__(self, family: Family, *, side: int, bf16: bool, device: torch.device, seed: int = 0) -> None:
        super().__init__(family, bf16=bf16, device=device)
        self.block = next(block for block in range(min(BLOCK, side), 0, -1) if side % block == 0)
        size = family.latent_channels * self.block**2
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn((side // self.block) ** 2, size, size, generator=generator)
        self._turns = torch.linalg.qr(drawn).Q.to(self.device)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [B, c, h, w]; the latter of the elements before, mixed likewise."""
        mean, std = super().encode(images)
        return self._turn(mean, self._turns), self._turn(std.square(), self._turns.square()).sqrt()

    def decode(self, latents: Tensor) -> Tensor:
        """Return what the autoencoder makes of the latents turned back."""
        return super().decode(self._turn(latents.to(self.device, torch.float32), self._turns.mT))

    def _turn(self, latents: Tensor, turns: Tensor) -> Tensor:
        """Multiply each block, as a vector, by its matrix."""
        blocks = torch.nn.functional.pixel_unshuffle(latents, self.block)
        mixed = torch.einsum("pij,bjp->bip", turns, blocks.flatten(2)).unflatten(2, blocks.shape[2:])
        return torch.nn.functional.pixel_shuffle(mixed, self.block)
