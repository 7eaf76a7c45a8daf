"""A recorder that stands in for CUDA's, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_vae.models.graphs import Network, Recording


class ReplayingRecorder:
    """Records as CUDA graphs do: a replay reads one tensor and overwrites another."""

    def __init__(self, *, error: Exception | None = None, wrong: float = 0.0) -> None:
        self.recorded: list[torch.Size] = []
        self.replayed = 0
        self.error, self.wrong = error, wrong

    def __call__(self, network: Network, source: Tensor) -> Recording:
        if self.error is not None:
            raise self.error
        self.recorded.append(source.shape)
        result = network(source)

        def replay() -> None:
            self.replayed += 1
            result.copy_(network(source) + self.wrong)

        return Recording(source, result, replay)
