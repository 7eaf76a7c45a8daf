"""Workers are counted from the cores that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ldm_vae.system import cores
from ldm_vae.system.cores import count_workers, usable_cores


def test_cores_are_those_of_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    quota = tmp_path / "cpu.max"
    assert usable_cores(quota) == 12
    for content, expected in (("max 100000", 12), ("350000 100000", 3), ("50000 100000", 1), ("6400000 100000", 12)):
        quota.write_text(f"{content}\n")
        assert usable_cores(quota) == expected


@pytest.mark.parametrize(
    ("gpu", "usable", "processes", "expected"),
    [(False, 16, 1, 2), (True, 16, 1, 15), (True, 64, 1, 16), (True, 64, 8, 7), (True, 1, 1, 1), (True, 8, 8, 1)],
)
def test_workers(monkeypatch: pytest.MonkeyPatch, gpu: bool, usable: int, processes: int, expected: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert count_workers(None) == expected
    assert [count_workers(requested) for requested in (0, 5)] == [0, 5]
