"""Muon beside AdamW: which weights, against plain formulas, clipped, skipped, resumed; and the schedule."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ldm_vae.config.train import TrainConfig
from ldm_vae.images.training import TrainingBatch
from ldm_vae.training.checkpoint import load_checkpoint
from ldm_vae.training.optimizers import NEWTON_SCHULZ, MuonAdamW, build_schedule
from ldm_vae.training.state import TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config
from tests.training.checkpoints import save_at

MUON = {"optimizer": "muon", "adam_epsilon": 1e-4}


def make(**train: object) -> tuple[TrainingState, TrainingStep]:
    torch.manual_seed(0)
    config = tiny_config(train=MUON | train, loss={"disc_start": 1})
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    return state, TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)


def make_batches(step: int, *, micro_batch_size: int = 4):
    rng = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, 8, 8, generator=rng).repeat_interleave(4, 2).repeat_interleave(4, 3).clamp(-1, 1)
    noise = torch.randn(4, 4, 16, 16, generator=rng)
    pairs = zip(images.split(micro_batch_size), noise.split(micro_batch_size), strict=True)
    return iter([TrainingBatch(images=i, noise=n, skipped=[]) for i, n in pairs])


def weights(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.autoencoder.state_dict().items()}


def moments(state: TrainingState) -> dict[str, torch.Tensor]:
    names = {id(p): name for name, p in state.trainable.named_parameters()}
    return {
        f"{names[id(p)]}:{key}": value.clone()
        for p, held in state.generator.optimizer.state.items()
        for key, value in held.items()
    }


def test_inner_weights_take_muon_and_the_rest_adamw():
    state, step = make()
    step(make_batches(0))
    held = moments(state)
    by_muon = {key.rsplit(":", 1)[0] for key in held if key.endswith(":momentum_buffer")}
    by_adamw = {key.rsplit(":", 1)[0] for key in held if key.endswith(":exp_avg_sq")}
    trained = {name: p for name, p in state.trainable.named_parameters() if p.requires_grad}
    assert by_muon | by_adamw == set(trained)
    assert by_muon & by_adamw == set()
    assert {"autoencoder.encoder.mid_block.attentions.0.to_q.weight"} <= by_muon
    assert {"autoencoder.decoder.up_blocks.0.resnets.0.conv1.weight"} <= by_muon
    borders = ["encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out", "quant_conv"]
    assert {f"autoencoder.{name}.weight" for name in [*borders, "post_quant_conv"]} <= by_adamw
    assert all(trained[name].ndim == 1 or "block" not in name for name in by_adamw)
    assert state.discriminator is not None
    assert not isinstance(state.discriminator.optimizer, MuonAdamW)


def test_two_updates_are_the_formulas():
    torch.manual_seed(0)
    convolution, bias = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(6))
    start = {"convolution": convolution.detach().clone(), "bias": bias.detach().clone()}

    def polar(matrices: torch.Tensor) -> torch.Tensor:
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        return u @ v

    optimizer = MuonAdamW(
        [{"params": [bias], "muon": False}, {"params": [convolution], "muon": True}],
        orthogonalise=polar,
        lr=0.01,
        weight_decay=0.1,
    )
    reference = torch.optim.AdamW([plain_bias := nn.Parameter(start["bias"].clone())], lr=0.01, weight_decay=0.1)
    gradients = [(torch.randn(6, 4, 3, 3), torch.randn(6)) for _ in range(2)]
    momentum, plain = torch.zeros(6, 36), start["convolution"].flatten(1)
    for clipping, (gradient, bias_gradient) in zip((4.0, 1.0), gradients, strict=True):
        convolution.grad, bias.grad, plain_bias.grad = (
            gradient.clone(),
            bias_gradient.clone(),
            bias_gradient / clipping,
        )
        optimizer.grad_scale = torch.tensor(clipping)
        optimizer.step()
        reference.step()
        momentum = 0.95 * momentum + 0.05 * gradient.flatten(1) / clipping
        ahead = 0.95 * momentum + 0.05 * gradient.flatten(1) / clipping
        plain = plain * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 36**0.5 * polar(ahead)
    torch.testing.assert_close(convolution.flatten(1), plain)
    torch.testing.assert_close(bias, plain_bias)


def test_newton_schulz_is_nearly_orthogonal():
    state, _ = make()
    matrices = torch.randn(3, 16, 40)
    iterated = state.generator.optimizer._orthogonalise(matrices)
    singular = torch.linalg.svdvals(iterated)
    assert len(NEWTON_SCHULZ) == 5
    assert singular.min() > 0.7
    assert singular.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(iterated.flatten(1), (u @ v).flatten(1)).min() > 0.98


def test_nonfinite_step_changes_neither_weights_nor_moments():
    state, step = make()
    for index in range(2):
        step(make_batches(index))
    before, held = weights(state), moments(state)
    broken = next(make_batches(2))
    broken.images[0, 0, 0, 0] = float("nan")
    step(iter([broken]))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(state).items())
    assert all(torch.equal(held[name], tensor) for name, tensor in moments(state).items())
    step(make_batches(3))
    after = weights(state)
    assert not torch.equal(
        before["encoder.mid_block.resnets.0.conv1.weight"], after["encoder.mid_block.resnets.0.conv1.weight"]
    )
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_micro_batches_give_the_same_update():
    whole, step = make()
    cut, cut_step = make(micro_batch_size=1)
    for index in range(3):
        step(make_batches(index))
        cut_step(make_batches(index, micro_batch_size=1))
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], weight, rtol=0, atol=2e-5, msg=name)


def test_resumed_run_is_bit_equal(tmp_path: Path):
    schedule = {"lr_scheduler": "constant_with_decay", "lr_warmup_steps": 2, "max_train_steps": 6}
    straight, step = make(**schedule)
    step.rehearse(resolution=32)
    for index in range(3):
        step(make_batches(index))
    checkpoint = save_at(straight, tmp_path, straight.step)
    resumed, resumed_step = make(**schedule)
    load_checkpoint(resumed, checkpoint)
    resumed_step.rehearse(resolution=32)
    assert resumed.learning_rates == straight.learning_rates
    for index in range(3, 6):
        step(make_batches(index))
        resumed_step(make_batches(index))
        assert resumed.learning_rates == straight.learning_rates
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(resumed)[name], tensor), name
    held = moments(resumed)
    assert any(name.endswith("momentum_buffer") for name in held)
    assert all(torch.equal(held[name], tensor) for name, tensor in moments(straight).items())


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm.optim.muon", None)
    with pytest.raises(ValueError, match=r"train\.optimizer is muon, which needs timm.*ldm-vae\[muon\]"):
        make()


def test_constant_with_decay():
    train = TrainConfig(
        learning_rate=0.5, lr_scheduler="constant_with_decay", lr_warmup_steps=4, lr_decay_fraction=0.25
    )
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = build_schedule(optimizer, train, num_steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == [0, 0.125, 0.25, 0.375, 0.5]
    assert rates[5:16] == [0.5] * 11
    assert rates[16:] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert optimizer.param_groups[0]["lr"] == 0
    with pytest.raises(ValueError, match=r"train\.lr_decay_fraction is 0"):
        TrainConfig(lr_decay_fraction=0)
