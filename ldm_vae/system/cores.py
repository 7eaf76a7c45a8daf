"""How many cores a process has, and how many of them decode images."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MOST_WORKERS = 16
_WORKERS_WITHOUT_GPU = 2


def count_workers(requested: int | None) -> int:
    """Return how many decoding processes a process has: as many as are asked for, else as its cores allow.

    A GPU's process leaves its cores to them, but for one. Without a GPU the cores are the networks'.
    """
    if requested is not None:
        return requested
    if not torch.cuda.is_available():
        return _WORKERS_WITHOUT_GPU
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores - 1, _MOST_WORKERS))


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use, by its affinity and by its container's quota.

    Args:
        quota: Where Linux says a control group's quota and period, in microseconds.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        microseconds, period = quota.read_text().split()
        return max(1, min(cores, int(microseconds) // int(period)))
    except (OSError, ValueError):  # no Linux, an older one, or no quota, which is said by the word max
        return cores
