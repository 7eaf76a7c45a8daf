"""How often each code of a codebook is used, and what the global batch makes of the codes.

From van den Oord et al. 2017, "Neural Discrete Representation Learning", appendix A.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm_vae.system.float64 import float64_device, float64_zeros, in_float64

DEAD = 0.01
"""A code is dead where it is used less than so many times as often as if all were used alike."""
MAX_RESTARTS = 256
"""Dead codes that an update can replace."""


@dataclass(frozen=True, kw_only=True)
class CodeStatistics:
    """What of the encoder's output went to which code. Those of a batch's parts merge into those of the batch."""

    counts: Tensor
    """[n], float64: places that took each code."""
    sums: Tensor
    """[n, d], float64: sum of the encoder's output at these places; [n, 0] where codes are fixed."""
    candidates: Tensor
    """[r, 1 + d]: a rank and the encoder's output at some of the places, the highest ranks first."""

    @classmethod
    def of(cls, vectors: Tensor, *, indices: Tensor, ranks: Tensor | None, num_codes: int) -> CodeStatistics:
        """Count.

        Args:
            vectors: [p, d], the encoder's output at each place.
            indices: [p], the code that each place took.
            ranks: [p], random numbers that say which places are candidates; None where codes are fixed.
            num_codes: n.
        """
        device = float64_device(vectors.device)
        indices = indices.to(device)
        counts = float64_zeros(num_codes, device=device)
        counts.index_add_(0, indices, in_float64(torch.ones_like(indices)))
        if ranks is None:
            empty = vectors.new_zeros(0, 1)
            return cls(counts=counts, sums=counts.new_zeros(num_codes, 0), candidates=empty)
        sums = float64_zeros(num_codes, vectors.shape[1], device=device)
        sums.index_add_(0, indices, in_float64(vectors))
        return cls(counts=counts, sums=sums, candidates=_highest(torch.cat([ranks[:, None], vectors], dim=1)))

    @classmethod
    def merge(cls, parts: Sequence[CodeStatistics]) -> CodeStatistics:
        """Return those of all parts together."""
        return cls(
            counts=torch.stack([part.counts for part in parts]).sum(0),
            sums=torch.stack([part.sums for part in parts]).sum(0),
            candidates=_highest(torch.cat([part.candidates for part in parts])),
        )


def _highest(candidates: Tensor) -> Tensor:
    """The places of the highest ranks, in their order, whichever way the batch was cut."""
    order = candidates[:, 0].topk(min(MAX_RESTARTS, len(candidates))).indices
    return candidates[order]


class CodeUsage(nn.Module):
    """Part of the batch's places that each code takes, as an exponential moving average; part of the checkpoint.

    Args:
        num_codes: n.
        dimension: d, where the average of the encoder's output makes the codes; 0 where codes are fixed.
        decay: Part of the averages that an update keeps.
    """

    usage: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, *, dimension: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("usage", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, dimension))

    @torch.no_grad()
    def start_from(self, codes: Tensor) -> None:
        """Take trained codes for used alike."""
        self.usage.fill_(1 / len(codes))
        self.sums.copy_(codes / len(codes))

    def after(self, batch: CodeStatistics) -> tuple[Tensor, Tensor]:
        """Return the averages as they are with the batch's: usage [n] and sums [n, d]."""
        places = batch.counts.sum()
        share, sums = ((value / places).to(self.usage) for value in (batch.counts, batch.sums))
        return self.usage.lerp(share, 1 - self.decay), self.sums.lerp(sums, 1 - self.decay)

    def is_dead(self, usage: Tensor) -> Tensor:
        """Return for each code whether hardly any place takes it, [n], bool."""
        return usage < DEAD / len(usage)

    def figures(self, usage: Tensor) -> dict[str, Tensor]:
        """Return the part of the codes that isn't dead, and the perplexity of their usage."""
        share = usage / usage.sum().clamp(min=1e-12)
        return {
            "codebook_usage": 1 - self.is_dead(usage).float().mean(),
            "codebook_perplexity": torch.exp(-torch.xlogy(share, share).sum()),
        }
