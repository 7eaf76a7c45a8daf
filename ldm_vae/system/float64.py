"""Float64 tensors, which some devices don't have: there they live on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that can't hold float64 (Apple's MPS)."""


def float64_device(device: torch.device | str) -> torch.device:
    """Return where float64 tensors live that go with those of `device`: there, or on the CPU."""
    device = torch.device(device)
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def in_float64(values: Tensor) -> Tensor:
    """Return `values` in float64, on the CPU where their device has no such type."""
    return values.to(float64_device(values.device)).to(torch.float64)


def float64_zeros(*size: int, device: torch.device | str) -> Tensor:
    """Return zeros in float64, on the CPU where the device has no such type."""
    return torch.zeros(*size, dtype=torch.float64, device=float64_device(device))


def float64_tensor(values: Sequence[float], *, device: torch.device | str = "cpu") -> Tensor:
    """Return values [n] in float64, on the CPU where the device has no such type."""
    return torch.tensor(values, dtype=torch.float64, device=float64_device(device))
