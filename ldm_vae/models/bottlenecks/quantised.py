"""Bottlenecks of a finite number of codes: a learnt codebook (VQ), and a grid that rounding gives (FSQ)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm_vae.models.bottlenecks.bottleneck import Bottleneck, Latent
from ldm_vae.models.bottlenecks.codes import CodeStatistics, CodeUsage

_ROWS_AT_ONCE = 16_384


class Quantised(Bottleneck):
    """The encoder's output is replaced by the nearest code, and gets the code's gradient as it is (straight through).

    Args:
        codebook: The codes, [n, d], as diffusers' VQModel holds them: no gradient, an average or fixed numbers.
        decay: Part of the averages that an update keeps.
    """

    modes = ("indices", "mean")
    losses = ("commitment",)
    figures = ("codebook_usage", "codebook_perplexity")
    learns = False

    def __init__(self, codebook: nn.Embedding, *, decay: float = 0.99) -> None:
        codebook.requires_grad_(False)
        self.codebook = codebook
        self.decay = decay
        self.usage: CodeUsage | None = None

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.codebook.num_embeddings

    @property
    def codes(self) -> Tensor:
        """The codes, [n, d], float32."""
        weight: Tensor = self.codebook.weight
        return weight.detach().float()

    def hidden_channels(self, latent_channels: int) -> int:
        """The latent's."""
        return latent_channels

    def begin_training(self, *, from_scratch: bool) -> nn.Module | None:
        """Return the averages that are trained with the weights."""
        self.usage = CodeUsage(
            self.codebook_size, dimension=self.codebook.embedding_dim if self.learns else 0, decay=self.decay
        )
        if not from_scratch:
            self.usage.start_from(self.codes[:, : self.usage.sums.shape[1]])
        return self.usage

    def __call__(self, hidden: Tensor, noise: Tensor | None = None) -> Latent:
        """Take the nearest code at each place. The noise has no effect but on which places may become codes."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            vectors = hidden.detach().permute(0, 2, 3, 1).flatten(0, 2)  # [B·h·w, d]
            indices = self.nearest(vectors)
            batch, _, height, width = hidden.shape
            codes = self.from_stored({"indices": indices.view(batch, 1, height, width)})
            statistics = None
            if torch.is_grad_enabled() and hidden.requires_grad:
                ranks = noise[:, 0].flatten() if self.learns and noise is not None else None
                statistics = CodeStatistics.of(vectors, indices=indices, ranks=ranks, num_codes=self.codebook_size)
            return Latent(
                z=codes + (hidden - hidden.detach()),
                mean=codes,
                losses={"commitment": self.commitment(hidden, codes)},
                stored={"indices": indices.view(batch, 1, height, width)},
                statistics=statistics,
            )

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the number of the nearest code, [p], of vectors [p, d]; distances are computed as VQModel does."""
        codes = self.codes
        return torch.cat([torch.cdist(rows, codes).argmin(1) for rows in vectors.split(_ROWS_AT_ONCE)])

    def commitment(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Return the mean squared distance of the encoder's output from its codes."""
        return (hidden - codes).square().mean()

    def from_stored(self, stored: Mapping[str, Tensor]) -> Tensor:
        """The codes [B, d, h, w] of `indices` [B, 1, h, w]."""
        return self.codes[stored["indices"][:, 0].long()].permute(0, 3, 1, 2).contiguous()

    def measure(self, batch: CodeStatistics) -> dict[str, Tensor]:
        """Return the figures with the global batch's counts."""
        assert self.usage is not None, "begin_training comes first"
        return self.usage.figures(self.usage.after(batch)[0])

    @torch.no_grad()
    def learn(self, batch: CodeStatistics, *, finite: Tensor) -> None:
        """Move the averages, where the update is finite."""
        assert self.usage is not None, "begin_training comes first"
        self.usage.usage.copy_(torch.where(finite, self.usage.after(batch)[0], self.usage.usage))


class VectorQuantised(Quantised):
    """Codes are the average of the encoder's output that took them, over the global batches.

    Dead codes are replaced by places of the batch, those with the highest noise. The noise is a function of (seed, k)
    for each image, so these places are one of (seed, step), however the batch is cut and dealt to processes.
    """

    name = "vq"
    learns = True

    @torch.no_grad()
    def learn(self, batch: CodeStatistics, *, finite: Tensor) -> None:
        """Move the averages and with them the codes, and replace dead ones, where the update is finite."""
        assert self.usage is not None, "begin_training comes first"
        state, codes = self.usage, self.codebook.weight
        usage, sums = state.after(batch)
        moved = torch.where(usage[:, None] > 1e-12, sums / usage[:, None].clamp(min=1e-12), codes)
        dead = state.is_dead(usage)
        rank = dead.cumsum(0) - 1
        vectors = batch.candidates[:, 1:].to(moved)
        restarted = (dead & (rank < len(vectors)))[:, None]
        moved = torch.where(restarted, vectors[rank.clamp(0, len(vectors) - 1)], moved)
        alike = 1 / len(usage)
        sums, usage = torch.where(restarted, moved * alike, sums), torch.where(restarted[:, 0], alike, usage)
        for held, new in ((state.usage, usage), (state.sums, sums), (codes, moved)):
            held.copy_(torch.where(finite, new, held))


class FiniteScalar(Quantised):
    """FSQ (Mentzer et al. 2023): each channel is rounded to one of a few levels, evenly from -1 to 1.

    The paper bounds channels by tanh before it rounds. Here what lies beyond the outermost levels goes to them, and is
    drawn back by the commitment: only so is rounding the nearest code of a codebook, which VQModel can hold.
    """

    name = "fsq"

    def __init__(self, codebook: nn.Embedding, *, levels: Sequence[int], decay: float = 0.99) -> None:
        super().__init__(codebook, decay=decay)
        self.levels = tuple(levels)
        with torch.no_grad():
            codebook.weight.copy_(grid(levels))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the number of the code that vectors [p, d] are rounded to, [p]."""
        steps = torch.tensor(self.levels, device=vectors.device) - 1
        places = ((vectors.clamp(-1, 1) + 1) / 2 * steps).round().long()
        return (places * _strides(self.levels).to(vectors.device)).sum(1)

    def commitment(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Return the mean squared distance of the encoder's output from the range of the codes."""
        return (hidden - hidden.detach().clamp(-1, 1)).square().mean()


def grid(levels: Sequence[int]) -> Tensor:
    """Return all codes of a grid, [n, d] in [-1, 1]; the last channel varies fastest."""
    numbers = torch.arange(math.prod(levels))[:, None]
    sizes = torch.tensor(levels)
    places = numbers // _strides(levels) % sizes
    return places * 2 / (sizes - 1) - 1


def levels_of(codes: Tensor) -> list[int] | None:
    """Return the levels of the grid that codes [n, d] are; None where they are no grid."""
    levels = [int(channel.unique().numel()) for channel in codes.T]
    if math.prod(levels) != len(codes) or min(levels) < 2:
        return None
    return levels if torch.allclose(codes.cpu().float(), grid(levels)) else None


def _strides(levels: Sequence[int]) -> Tensor:
    return torch.tensor([math.prod(levels[i + 1 :]) for i in range(len(levels))])
