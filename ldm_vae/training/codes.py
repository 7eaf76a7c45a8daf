"""What a quantised bottleneck learns from: the codes that the global batch took."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from ldm_vae.models.bottlenecks.codes import CodeStatistics


def of_global_batch(parts: Sequence[CodeStatistics], *, accelerator: Accelerator) -> CodeStatistics | None:
    """Merge the statistics of an update's micro-batches and of all processes; None where nothing is learnt.

    Counts are exact and sums in float64, so how the batch was cut and dealt changes no code by more than rounding.
    """
    if not parts:
        return None
    own = CodeStatistics.merge(parts)
    if accelerator.num_processes == 1:
        return own
    sums = accelerator.reduce(torch.cat([own.counts[:, None], own.sums], dim=1), reduction="sum")
    everyones = CodeStatistics(counts=sums[:, 0], sums=sums[:, 1:], candidates=accelerator.gather(own.candidates))
    return CodeStatistics.merge([everyones])
