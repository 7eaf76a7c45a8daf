"""A control: an autoencoder of perfectly the same reconstructions, whose latents are hard to learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder

BLOCK = 4
"""Side of the blocks of neighbours that are mixed, in latent pixels."""


class ScrambledAutoencoder(InferenceAutoencoder):
    """An autoencoder whose latent's elements are turned, block by block, by random orthogonal matrices.

    A block's matrix is its own, so nothing that is learnt of one place holds at another. Its transpose undoes it:
    decoding gives what it gave before, up to rounding. Latents of another size have other matrices. A probe that
    doesn't rank it last can't tell good latents from bad ones at its budget.

    Args:
        family: The autoencoder.
        bf16: Compute in bf16; else in exact float32.
        device: Where.
        seed: Of the matrices.
    """

    def __init__(self, family: Family, *, bf16: bool, device: torch.device, seed: int = 0) -> None:
        super().__init__(family, bf16=bf16, device=device)
        self._seed = seed
        self._turns: dict[int, Tensor] = {}

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and standard deviation [B, c, h, w]; the latter of the elements before, mixed likewise."""
        mean, std = super().encode(images)
        turns = self._turns_of(mean)
        spread = None if std is None else turn_blocks(std.square(), turns.square()).sqrt()
        return turn_blocks(mean, turns), spread

    def decode(self, latents: Tensor) -> Tensor:
        """Return what the autoencoder makes of the latents turned back."""
        latents = latents.to(self.device, torch.float32)
        return super().decode(turn_blocks(latents, self._turns_of(latents).mT))

    def _turns_of(self, latents: Tensor) -> Tensor:
        """Return the matrices for square latents [B, c, h, h]: one a block, [blocks, size, size]."""
        channels, side = latents.shape[1:3]
        if side not in self._turns:
            block = _block(side)
            size = channels * block**2
            generator = torch.Generator().manual_seed(self._seed)
            drawn = torch.randn((side // block) ** 2, size, size, generator=generator)
            self._turns[side] = torch.linalg.qr(drawn).Q.to(self.device)
        return self._turns[side]


def _block(side: int) -> int:
    return next(block for block in range(min(BLOCK, side), 0, -1) if side % block == 0)


def turn_blocks(latents: Tensor, turns: Tensor) -> Tensor:
    """Multiply each block, as a vector, by its matrix."""
    block = _block(latents.shape[-1])
    blocks = nn.functional.pixel_unshuffle(latents, block)
    mixed = torch.einsum("pij,bjp->bip", turns, blocks.flatten(2)).unflatten(2, blocks.shape[2:])
    return nn.functional.pixel_shuffle(mixed, block)
