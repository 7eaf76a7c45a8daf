"""Sums by name, in float64: they add up over batches and processes, in whatever order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def in_float64(values: Tensor) -> Tensor:
    """Return `values` in float64, on the CPU where their device has no such type (Apple's MPS)."""
    return values.to(_device_with_float64(values.device)).double()


class Sums:
    """Float64 vectors that are added to by name.

    Args:
        sizes: Elements of each vector, by its name.
        device: Where they are kept, so that adding waits for nothing; the CPU in place of one without float64.
    """

    def __init__(self, sizes: Mapping[str, int], *, device: torch.device | str = "cpu") -> None:
        device = _device_with_float64(torch.device(device))
        self._sums = {name: torch.zeros(size, dtype=torch.float64, device=device) for name, size in sizes.items()}

    def add(self, name: str, values: Tensor) -> None:
        """Add `values`, of as many elements as the vector called `name` has."""
        total = self._sums[name]
        total += values.detach().to(total.device).double().reshape(total.shape)

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


def _device_with_float64(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device
