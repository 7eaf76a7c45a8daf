"""The probe's transformer: small, fixed, and with the same number of tokens whatever the autoencoder's factor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_TIME_SCALE = 1000.0
_FREQUENCIES = 256


class LatentTransformer(nn.Module):
    """A diffusion transformer (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", adaLN-Zero).

    Latents are cut into patches of p x p, which become tokens by a linear layer. Blocks are modulated by the time, and
    by the class where there are any. Queries and keys are normalised (Esser et al. 2024, section 5.3.2). It begins as
    the function that is 0.

    Args:
        channels: Channels of the latents, c.
        side: Their height and width.
        patch: Side of a patch, p, which divides `side`.
        width: Features of a token, a multiple of 4 and of `heads`.
        depth: Blocks.
        heads: Attention heads.
        num_classes: Classes to draw from; None: latents without classes.
    """

    def __init__(
        self,
        *,
        channels: int,
        side: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        self.tokens_in = nn.Linear(channels * patch**2, width)
        self.time = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = None if num_classes is None else nn.Embedding(num_classes, width)
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.tokens_out = nn.Linear(width, channels * patch**2)
        self.register_buffer("places", _places(side // patch, width), persistent=False)
        for layer in (self.modulation, self.tokens_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the velocity [B, c, h, w] of latents [B, c, h, w] at times [B], from 0 (data) to 1 (noise).

        Args:
            latents: On the way between data and noise.
            times: Where on it.
            labels: Classes [B] of a network that has them.
        """
        condition = self.time(_waves(times * _TIME_SCALE, _FREQUENCIES))
        if self.classes is not None:
            condition = condition + self.classes(labels)
        condition = nn.functional.silu(condition)
        tokens = nn.functional.pixel_unshuffle(latents, self.patch).flatten(2).transpose(1, 2)
        tokens = self.tokens_in(tokens) + self.places
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        tokens = self.tokens_out(self.norm(tokens) * (1 + scale) + shift)
        grid = self.side // self.patch
        return nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (grid, grid)), self.patch)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_queries, self.norm_keys = (nn.RMSNorm(width // heads) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate1 * self._attend(self.norm1(tokens) * (1 + scale1) + shift1)
        return tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)

    def _attend(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.attention_in(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(
            self.norm_queries(queries).to(values), self.norm_keys(keys).to(values), values
        )
        return self.attention_out(mixed.transpose(1, 2).flatten(2))


def _waves(positions: Tensor, size: int) -> Tensor:
    """Cosines and sines of positions [n], [n, size] (Vaswani et al. 2017)."""
    half = size // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=positions.device) / half)
    angles = positions[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _places(grid: int, width: int) -> Tensor:
    """What tells the tokens of a grid apart, [grid², width]: waves of the row beside those of the column."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([_waves(axis.flatten(), width // 2) for axis in (rows, columns)], dim=1)
