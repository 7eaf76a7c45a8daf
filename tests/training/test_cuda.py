"""What only a GPU can show."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ldm_vae.training.state import build_state
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"micro_batch_size": 2},
        {"mixed_precision": "bf16"},
        {"gradient_checkpointing": "blocks"},
        {"compile": "on"},
    ],
)
def test_a_step_never_waits_for_the_device(train: dict[str, object]) -> None:
    config = tiny_config(data={"resolution": 64}, loss={"perceptual": "efficientnet_lite0"}, train=train)
    AcceleratorState._reset_state(reset_partial_state=True)  # of tests before, which asked for the CPU
    accelerator = Accelerator()
    assert accelerator.device.type == "cuda"
    state = build_state(config, accelerator=accelerator)
    step = TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)
    if config.train.compile == "on":
        state.compile_networks()
    step.rehearse(resolution=64)
    size, accumulation = config.train.accumulation(num_processes=1)
    batches = [step.grey_batch(size, resolution=64).pin_memory() for _ in range(accumulation)]
    step(iter(batches))  # optimizers and kernels set themselves up
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):  # one before the GAN's start at step 2, and two after it
            step(iter(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        AcceleratorState._reset_state(reset_partial_state=True)
    assert state.meter.read().num_finite == 4
