"""A step never waits for the device: it reads no tensor's value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_vae.training.loop import train
from tests.tiny import tiny_config
from tests.training.steps import make, make_batch

READING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)


class Reads(TorchDispatchMode):
    """Counts how often a tensor's value is handed to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func.overloadpacket in READING
        return func(*args, **(kwargs or {}))


class NothingIsRead(TorchDispatchMode):
    """Refuses to hand a tensor's value to Python, for which a GPU would have to be waited for."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func.overloadpacket not in READING, f"{func} reads a value"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("adaptive_weight", ["lagged", "same_step", "off"])
def test_a_step_reads_no_value(optimizer: str, adaptive_weight: str) -> None:
    config = tiny_config(
        loss={"adaptive_weight": adaptive_weight, "disc_start": 0},
        train={"optimizer": optimizer, "mixed_precision": "bf16", "micro_batch_size": 2},
    )
    _, step, _ = make(config)
    batches = [make_batch(2), make_batch(2, seed=2)]
    step(iter(batches))  # optimizers set themselves up
    with NothingIsRead():
        step(iter(batches))
        with pytest.raises(AssertionError, match="reads a value"):
            batches[0].images.sum().item()


def test_a_longer_run_reads_no_more_values(tmp_path: Path, pictures: Path) -> None:
    """What the loop does between reports, validations and checkpoints reads nothing either."""
    counts = []
    for steps in (4, 9):
        config = tiny_config(
            output_dir=tmp_path / str(steps),
            data={"train": str(pictures)},
            train={"max_train_steps": steps, "log_steps": 100, "validation_steps": 100, "checkpointing_steps": 100},
        )
        with Reads() as reads:
            train(config)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0
