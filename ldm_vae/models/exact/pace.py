"""How long a program will take: its operations, over the pace of its own largest layers on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ldm_vae.models.exact.program import AttentionPass, ConvPass, Program

ROWS, COLUMNS = 16, 64  # of the map that a convolution is timed on
QUERIES, KEYS = 512, 2048


@dataclass(frozen=True)
class Pace:
    """Operations a second, each a multiplication or an addition."""

    convolution: float
    attention: float

    @classmethod
    @torch.no_grad()
    def of(cls, program: Program, *, device: torch.device) -> Pace:
        """Time the largest convolution of a program, and its attention where it has any; it takes a blink."""
        convs = [step.conv for step in program.passes if isinstance(step, ConvPass)]
        conv = max(convs, key=lambda conv: conv.weight.numel())
        weight, (height, width) = conv.weight, conv.kernel_size
        rows = weight.new_zeros(1, conv.in_channels, ROWS + height - 1, COLUMNS + width - 1)
        rows = rows.contiguous(memory_format=torch.channels_last)
        operations = 2.0 * weight.numel() * ROWS * COLUMNS
        pace = operations / _seconds(lambda: F.conv2d(rows, weight, groups=conv.groups), device=device)
        attention = next((step.attention for step in program.passes if isinstance(step, AttentionPass)), None)
        if attention is None:
            return cls(pace, pace)
        query, key = (
            attention.to_q.weight.new_zeros(1, attention.heads, count, attention.inner_dim // attention.heads)
            for count in (QUERIES, KEYS)
        )
        operations = 4.0 * QUERIES * KEYS * attention.inner_dim
        taken = _seconds(lambda: F.scaled_dot_product_attention(query, key, key), device=device)
        return cls(pace, operations / taken)


def _seconds(act: Callable[[], object], *, device: torch.device) -> float:
    act()  # what is prepared once
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - start, 1e-9)


def in_words(seconds: float) -> str:
    """Return a duration as one says it."""
    for limit, unit, name in ((100, 1, "s"), (100 * 60, 60, "min")):
        if seconds < limit:
            return f"{max(1, round(seconds / unit))} {name}"
    return f"{seconds / 3600:.1f} h"
