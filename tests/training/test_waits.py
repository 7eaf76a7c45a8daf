"""A step never waits for the device: it reads no tensor's value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import tiny_config
from tests.training.steps import make, make_batch


class NothingIsRead(TorchDispatchMode):
    """Refuses to hand a tensor's value to Python, for which a GPU would have to be waited for."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reading = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
        assert func.overloadpacket not in reading, f"{func} reads a value"
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
