"""Equivariance, noise and low-pass as terms and interventions of a step, against plain autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ldm_vae.config.run import Config
from ldm_vae.images.draws import DrawRules
from ldm_vae.images.training import TrainingBatch
from ldm_vae.training.state import TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config

PAIR = {
    "equivariance_weight": 0.5,
    "consistency_weight": 0.2,
    "equivariance_every": 2,
    "equivariance_scales": [0.5, 0.75],
    "equivariance_flips": True,
}


def config_of(loss: dict[str, Any], **sections: Any) -> Config:
    train = {"batch_size": 4, "max_grad_norm": 0.0} | sections.pop("train", {})
    return tiny_config(loss={"reconstruction": "l2", "kl_weight": 1e-2} | loss, train=train, **sections)


def make(config: Config, *, step: int = 2) -> tuple[TrainingState, TrainingStep]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    state.step = step
    return state, TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)


def batches_of(config: Config, *, step: int = 2, parts: int = 1) -> list[TrainingBatch]:
    """The micro-batches of an update, with their draws."""
    rng = torch.Generator().manual_seed(1)
    images = F.interpolate(torch.randn(4, 3, 8, 8, generator=rng), size=32, mode="bicubic").clamp(-1, 1)
    noise = torch.randn(4, 4, 16, 16, generator=rng)
    rules = DrawRules.of(config.loss, seed=5, batch_size=4, decoder_only=config.model.decoder_only)
    samples = [rules.of_image(4 * step + i, latent_shape=noise.shape[1:]) for i in range(4)]
    whole = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    size = 4 // parts
    return [
        TrainingBatch(
            images=images[i : i + size],
            noise=noise[i : i + size],
            skipped=[],
            draws={**{name: drawn[i : i + size] for name, drawn in whole.items()}, **rules.of_step(step)},
        )
        for i in range(0, 4, size)
    ]


def moved(pictures: Tensor, draws: dict[str, Any], *, side: int) -> Tensor:
    scaled = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
    return torch.stack(
        [
            torch.rot90(one.flip(-1) if mirror else one, quarters, (-2, -1))
            for one, quarters, mirror in zip(scaled, draws["rotation"].tolist(), draws["mirror"].tolist(), strict=True)
        ]
    )


def gradients(state: TrainingState) -> dict[str, Tensor]:
    return {name: p.grad for name, p in state.autoencoder.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=2e-5 * scale, msg=name)


def test_additive_form_and_consistency_are_the_plain_formulas() -> None:
    config = config_of({**PAIR, "disc_weight": 0.0})
    state, step = make(config)
    model = copy.deepcopy(state.autoencoder)
    (batch,) = batches_of(config)
    side = round(batch.draws["pair_scale"] * 16)

    posterior = model.encode(batch.images).latent_dist
    z = posterior.mean + posterior.std * batch.noise
    x2 = moved(batch.images, batch.draws, side=2 * side)
    equivariance = (model.decode(moved(z, batch.draws, side=side)).sample - x2).square().mean()
    transformed_mean, mean = moved(posterior.mean, batch.draws, side=side), model.encode(x2).latent_dist.mean
    consistency = torch.stack(
        [
            (one - other).square().mean() / (other.detach().var(correction=0) + 1e-6)
            for one, other in zip(mean, transformed_mean, strict=True)
        ]
    ).mean()
    rec = (model.decode(z).sample - batch.images).square().mean()
    kl = posterior.kl().mean() / batch.images[0].numel()
    (rec + 1e-2 * kl + 0.5 * equivariance + 0.2 * consistency).backward()

    result = step.micro_batch(batch, adversarial=False)
    assert_same(gradients(state), {name: p.grad for name, p in model.named_parameters()})
    figures = dict(zip(step.averaged, result.figures.tolist(), strict=True))
    assert figures["equivariance"] == pytest.approx(equivariance.item(), rel=1e-5)
    assert figures["consistency"] == pytest.approx(consistency.item(), rel=1e-4)
    assert figures["rec"] == pytest.approx(rec.item(), rel=1e-5)


def test_updates_without_the_second_decode_are_ordinary_ones_and_leave_no_trace_in_its_figures() -> None:
    config = config_of(PAIR)
    state, step = make(config)
    plain, plain_step = make(config_of({}))
    plain.lam.fill_(0.1)
    state.lam.fill_(0.1)
    (batch,) = batches_of(config, step=3)
    assert "pair_scale" not in batch.draws
    step(iter([batch]))
    plain_step(iter([batch]))
    for name, weight in plain.autoencoder.state_dict().items():
        assert torch.equal(state.autoencoder.state_dict()[name], weight), name
    state.step = 4
    step(iter(batches_of(config, step=4)))
    reading = state.meter.read()
    assert reading.num_finite == 2
    figures = dict(reading.means)
    again, again_step = make(config, step=4)
    again.autoencoder.load_state_dict(plain.autoencoder.state_dict())
    again_step(iter(batches_of(config, step=4)))
    assert figures["equivariance"] == pytest.approx(again.meter.read().means["equivariance"], rel=1e-6)


def test_eq_form_has_all_losses_and_the_discriminator_see_the_transformed_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.nn, "LeakyReLU", lambda slope: torch.nn.SiLU())  # no kinks for rounding to cross
    loss = {"eq_probability": 1.0, "equivariance_scales": [0.75], "disc_start": 0, "adaptive_weight": "off"}
    config = config_of({**loss, "disc_weight": 0.3})
    state, step = make(config)
    model = copy.deepcopy(state.autoencoder)
    discriminator = copy.deepcopy(state.discriminator.module)
    (batch,) = batches_of(config)
    side = round(batch.draws["eq_scale"] * 16)
    posterior = model.encode(batch.images).latent_dist
    z = posterior.mean + posterior.std * batch.noise
    x2, y2 = moved(batch.images, batch.draws, side=2 * side), model.decode(moved(z, batch.draws, side=side)).sample
    kl = posterior.kl().mean() / batch.images[0].numel()  # of the images that were encoded
    total = (x2 - y2).square().mean() + 1e-2 * kl - 0.3 * discriminator.logits(y2).mean()
    grads = torch.autograd.grad(total, list(model.parameters()))
    real, fake = discriminator.logits(x2), discriminator.logits(y2.detach())
    d = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    d_grads = torch.autograd.grad(d, list(discriminator.parameters()))

    seen = []
    forward = state.discriminator.wrapped.forward
    state.discriminator.wrapped.forward = lambda x, y, **kept: seen.append(x.shape) or forward(x, y, **kept)
    step.micro_batch(batch, adversarial=True)
    assert seen == [(4, 3, 2 * side, 2 * side)]
    names = [name for name, _ in model.named_parameters()]
    assert_same(gradients(state), dict(zip(names, grads, strict=True)))
    for parameter, gradient in zip(state.discriminator.parameters, d_grads, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


FORMS = {
    "additive": PAIR,
    "eq": {"eq_probability": 1.0, "equivariance_scales": [0.5, 0.75]},
    "noise": {"latent_noise": "interpolative"},
    "low_pass": {"low_pass": [0, 8, 12]},
    "all": {**PAIR, "eq_probability": 1.0, "latent_noise": "relative", "low_pass": [0, 8, 12]},
}


@pytest.mark.parametrize("form", FORMS)
def test_accumulation_equals_one_large_batch(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn, "LeakyReLU", lambda slope: torch.nn.SiLU())  # no kinks for rounding to cross
    collected = []
    for parts in (1, 4):
        config = config_of({**FORMS[form], "disc_start": 0}, train={"micro_batch_size": 4 // parts})
        state, step = make(config)
        state.lam.fill_(0.2)
        for network in state.networks:
            network.optimizer.zero_grad = lambda: None  # keep what the update used
        step(iter(batches_of(config, parts=parts)))
        collected.append({name: p.grad for name, p in state.trainable.named_parameters() if p.grad is not None})
    assert_same(collected[1], collected[0])


@pytest.mark.parametrize("form", ["additive", "noise", "eq"])
def test_decoder_only_leaves_the_encoder_bit_unchanged_and_has_no_noise(form: str) -> None:
    loss = {**FORMS[form], "consistency_weight": 0.0}
    config = config_of(loss, model={"decoder_only": True})
    state, step = make(config)
    before = copy.deepcopy(state.autoencoder.state_dict())
    (batch,) = batches_of(config)
    assert "latent_noise" not in batch.draws
    step(iter([batch]))
    for name, weight in state.autoencoder.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith(("encoder.", "quant_conv.")), name


def test_bf16_is_near_float32() -> None:
    config = config_of({**PAIR, "disc_weight": 0.0})
    figures = []
    for precision in ("no", "bf16"):
        state, step = make(config_of({**PAIR, "disc_weight": 0.0}, train={"mixed_precision": precision}))
        step(iter(batches_of(config)))
        figures.append(state.meter.read().means)
    for name in ("equivariance", "consistency", "rec"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=0.05), name


def test_the_rehearsal_has_the_second_decode_and_changes_nothing() -> None:
    state, step = make(config_of(FORMS["all"]))
    before = copy.deepcopy(state.autoencoder.state_dict())
    decoded = []
    state.autoencoder.decoder.mid_block.register_forward_hook(
        lambda _, inputs, __: decoded.append(inputs[0].shape[-1])
    )
    step.rehearse(resolution=32)
    assert sorted(decoded) == [12, 16]
    for name, weight in state.autoencoder.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss": {"consistency_weight": 0.1}, "model": {"decoder_only": True}}, "loss.consistency_weight trains the"),
        ({"loss": {"equivariance_rotations": [45]}}, r"loss.equivariance_rotations is \[45\]"),
        ({"loss": {"equivariance_scales": []}}, "loss.equivariance_scales is empty"),
        ({"loss": {"equivariance_scales": [1.5]}}, r"must lie in \(0, 1\]"),
        ({"loss": {"low_pass": [15]}}, "above 14 nothing"),
    ],
)
def test_settings_that_cannot_be_are_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss": {"eq_probability": 0.5, "disc_num_layers": 3}}, "makes images of 8 pixels of those of 32"),
        ({"loss": {"low_pass": [8]}, "data": {"early_resolutions": [24], "early_fractions": [0.5]}}, "24 pixels have"),
    ],
)
def test_sides_that_do_not_fit_are_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build_state(tiny_config(**fields), accelerator=Accelerator(cpu=True))
