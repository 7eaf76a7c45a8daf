"""Sums by name, in float64: they add up over batches and processes, in whatever order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_vae.system.float64 import float64_zeros, in_float64


class Sums:
    """Float64 vectors that are added to by name.

    Args:
        sizes: Elements of each vector, by its name.
        device: Where they are kept, so that adding waits for nothing; the CPU in place of one without float64.
    """

    def __init__(self, sizes: Mapping[str, int], *, device: torch.device | str = "cpu") -> None:
        self._sums = {name: float64_zeros(size, device=device) for name, size in sizes.items()}

    def add(self, name: str, values: Tensor) -> None:
        """Add `values`, of as many elements as the vector called `name` has."""
        total = self._sums[name]
        total += in_float64(values.detach()).to(total.device).reshape(total.shape)

    def __getitem__(self, name: str) -> Tensor:
        """Return the vector called `name`, float64 on the CPU."""
        return self._sums[name].cpu()

    def state(self) -> dict[str, Tensor]:
        """Return a copy of all vectors by name: add up those of all processes and `load_state` the totals."""
        return {name: total.clone() for name, total in self._sums.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all vectors by those of `state`, which must have the same names and sizes.

        Raises:
            ValueError: A name is missing or unknown, or a size differs.
        """
        sizes = {name: total.numel() for name, total in self._sums.items()}
        given = {name: total.numel() for name, total in state.items()}
        if given != sizes:
            raise ValueError(f"sums of {given} can't replace sums of {sizes}")
        for name, total in self._sums.items():
            total.copy_(state[name])
