"""What bench_train.py measures by: marks in time, and sizes of tensors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Marks:
    """Moments of a step, each beginning a section: CUDA events, or the clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.current = ""
        self._moments: list[tuple[str, Any]] = []

    def start(self, section: str) -> None:
        """Forget the last step."""
        self._moments.clear()
        self.mark(section)

    def mark(self, section: str) -> None:
        """Begin a section."""
        self.current = section
        if self.device.type == "cuda":
            moment: Any = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._moments.append((section, moment))

    def seconds(self) -> dict[str, float]:
        """Seconds of each section; the last one ends now."""
        self.mark("end")
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return {
            section: begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
            for (section, begin), (_, end) in pairwise(self._moments)
        }


def tensors_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """A network's weights, its gradients (as large as the trained ones) and its optimizer's tensors."""
    yield from network.parameters()
    for group in optimizer.param_groups:
        yield from group["params"]
    for values in optimizer.state.values():
        yield from (value for value in values.values() if isinstance(value, Tensor))


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
