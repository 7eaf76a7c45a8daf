"""Reads, compares and damages what runs leave in their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def last_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return max(path for path in run.glob("checkpoint-*") if path.suffix != ".damaged")


def weights(run: Path) -> dict[str, Tensor]:
    """Return all that the last checkpoint's tensor files hold, but for the optimizers', by file and name."""
    files = [path for path in last_checkpoint(run).glob("*.safetensors") if "optimizer" not in path.name]
    return {
        f"{path.stem}/{key}": tensor
        for path in files
        for key, tensor in load_file(path).items()
        if not key.startswith("meter")
    }


def largest_difference(one: Path, other: Path, *, but_for: Sequence[str] = ()) -> float:
    """Return the largest difference of two runs' last weights, averages, discriminators, log-variance and lam."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a if name.partition("/")[0] not in but_for)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, but for the time that things took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def assert_bit_equal(run: Path, expected: Path) -> None:
    """Compare weights, averages, both optimizers, schedules, sums and metrics, bit by bit."""
    one, other = last_checkpoint(run), last_checkpoint(expected)
    assert one.name == other.name
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for path in sorted(one.glob("*.safetensors")):
        tensors, others = load_file(path), load_file(other / path.name)
        assert tensors.keys() == others.keys()
        for name in tensors:
            assert torch.equal(tensors[name], others[name]), f"{path.name}: {name}"
    assert (one / "state.json").read_text() == (other / "state.json").read_text()
    assert metrics(run) == metrics(expected)


def damage(path: Path, *, how: str) -> None:
    """Flip a bit in the middle of a file, or cut off its end."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flip" else content[:-100])
