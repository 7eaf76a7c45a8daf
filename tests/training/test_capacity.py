"""What is said of memory is measured again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from ldm_vae.config.run import Config
from ldm_vae.models.checkpointing import checkpoint_activations
from ldm_vae.training.batch_size import next_micro_batch, try_micro_batches
from ldm_vae.training.capacity import GIB, PeakMemory, fit_to_memory
from ldm_vae.training.loop import train
from ldm_vae.training.state import build_state
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config

MICRO_BATCH_SIZE = 8


def make_step(config: Config) -> tuple[TrainingStep, Accelerator]:
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    return TrainingStep(
        state, loss_config=config.loss, train_config=config.train, accelerator=accelerator
    ), accelerator


def large_config(**train: Any) -> Config:
    """A model whose activations are hundreds of megabytes."""
    model = {"block_out_channels": [16, 16], "layers_per_block": 2}
    return tiny_config(model=model, data={"resolution": 128}, train={"batch_size": MICRO_BATCH_SIZE, **train})


def test_peak_memory_sees_what_was_freed() -> None:
    memory = PeakMemory(torch.device("cpu"))
    before = memory.current
    tensor = torch.ones(50 * 2**20)
    del tensor
    assert memory.peak - before == pytest.approx(200 * 2**20, rel=0.1)
    assert PeakMemory(torch.device("cpu")).peak - before < 20 * 2**20  # it starts anew


@pytest.mark.parametrize("decoder_only", [False, True])
def test_gradients_are_bit_equal_whatever_is_recomputed(decoder_only: bool) -> None:
    model = {"block_out_channels": [8, 16], "attention_levels": [1], "decoder_only": decoder_only}
    step, _ = make_step(tiny_config(model=model, data={"resolution": 64}))
    state = step.state
    batch = step.grey_batch(4, resolution=64)
    batch.images.uniform_(-1, 1)
    batch.noise.normal_()
    block = state.autoencoder.decoder.up_blocks[0].resnets[0]
    calls = {"conv1": 0, "conv2": 0}
    for name in calls:
        getattr(block, name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    found, counted = {}, {}
    for level in ("none", "blocks", "full", "none"):
        checkpoint_activations(state.family, level)  # type: ignore[arg-type]
        calls.update(conv1=0, conv2=0)
        step.micro_batch(batch, adversarial=True)
        gradients = [p.grad.clone() for p in state.generator.parameters if p.grad is not None]
        assert len(gradients) == len(state.generator.parameters)
        step.forget_gradients()
        if level in found:
            assert counted[level] == calls  # it was changed back
        found[level], counted[level] = gradients, dict(calls)
    assert counted == {
        "none": {"conv1": 1, "conv2": 1},
        "blocks": {"conv1": 2, "conv2": 1},
        "full": {"conv1": 3, "conv2": 2},
    }
    for level in ("blocks", "full"):
        for gradient, expected in zip(found[level], found["none"], strict=True):
            assert torch.equal(gradient, expected)


def test_memory_budget_raises_the_level_and_holds() -> None:
    step, accelerator = make_step(large_config(memory_budget_gib=0.01))
    with pytest.raises(ValueError, match=r"^train\.memory_budget_gib is 0\.01.* a smaller train\.micro_batch") as told:
        fit_to_memory(step, large_config(memory_budget_gib=0.01), accelerator=accelerator)
    estimates = {level: float(gib) for level, gib in re.findall(r"(none|blocks) (\d+\.\d+) GiB", str(told.value))}
    assert estimates["none"] > estimates["blocks"] + 0.1

    checkpoint_activations(step.state.family, "none")
    memory = PeakMemory(accelerator.device)
    batch = step.grey_batch(MICRO_BATCH_SIZE, resolution=128)
    step(iter([batch]))
    assert memory.peak / GIB < estimates["none"]  # rather from above

    budget = (estimates["none"] + estimates["blocks"]) / 2
    said = fit_to_memory(step, large_config(memory_budget_gib=budget), accelerator=accelerator)
    assert said.endswith("so gradient_checkpointing is blocks")
    memory = PeakMemory(accelerator.device)
    step(iter([batch]))
    assert memory.peak / GIB < budget


def test_run_keeps_to_its_budget_or_says_why_not(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"train": str(pictures)}
    with pytest.raises(
        ValueError, match=r"^train\.memory_budget_gib is 0\.01, but a micro-batch of 4 takes about, .*"
    ):
        train(tiny_config(output_dir=tmp_path / "small", data=data, train={"memory_budget_gib": 0.01}))
    train(tiny_config(output_dir=tmp_path / "large", data=data, train={"memory_budget_gib": 64, "max_train_steps": 1}))
    assert "so gradient_checkpointing is none" in capsys.readouterr().out


@given(capacity=st.integers(0, 600), largest=st.integers(1, 512))
def test_search_ends_at_the_largest_that_fits(capacity: int, largest: int) -> None:
    fits, too_large, tried = 0, None, []
    while (size := next_micro_batch(fits, too_large, largest=largest)) is not None:
        tried.append(size)
        assert fits < size <= largest
        if size <= capacity:
            fits = size
        else:
            assert too_large is None or size < too_large
            too_large = size
    assert len(tried) <= 16
    assert fits <= capacity
    if too_large is None:
        assert fits == largest
    else:
        assert too_large > capacity
        assert too_large - fits <= max(1, fits // 8)


def test_trials_are_real_steps() -> None:
    config = large_config(mixed_precision="no")
    (trial,) = try_micro_batches(config, limit_bytes=64 * GIB, largest=1)
    assert trial.micro_batch_size == 1
    assert trial.peak_bytes is not None
    assert 0.5 * GIB < trial.peak_bytes < 4 * GIB
    assert trial.images_per_second is not None
    assert trial.images_per_second > 0
