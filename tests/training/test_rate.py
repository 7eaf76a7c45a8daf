"""Free bits and capacity in the step: the global batch's, whatever its cut; and posteriors that aren't learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm_vae.config.parsing import parse
from ldm_vae.config.run import Config
from ldm_vae.images.training import TrainingBatch
from ldm_vae.losses.rate import PosteriorSummary
from ldm_vae.training.health import Health
from ldm_vae.training.meter import MeterReading
from ldm_vae.training.state import TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config


def make(**sections: Any) -> tuple[TrainingState, TrainingStep]:
    loss = {"kl_weight": 0.1, "reconstruction": "l2", "disc_weight": 0.0} | sections.pop("loss", {})
    config = tiny_config(loss=loss, **sections)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    step = TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)
    return state, step


def batches(*, parts: int = 1, seed: int = 0) -> list[TrainingBatch]:
    rng = torch.Generator().manual_seed(seed)
    images, noise = torch.rand(4, 3, 32, 32, generator=rng) * 2 - 1, torch.randn(4, 4, 16, 16, generator=rng)
    size = 4 // parts
    return [
        TrainingBatch(images=images[i : i + size], noise=noise[i : i + size], skipped=[]) for i in range(0, 4, size)
    ]


def global_kl(state: TrainingState) -> Tensor:
    """KL of each channel of the whole batch, in nats an element."""
    posterior = state.autoencoder.encode(batches()[0].images).latent_dist
    return 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean(dim=(0, 2, 3))


@pytest.mark.parametrize("bound", ["free_bits", "capacity"])
def test_gradient_is_that_of_the_published_formula_on_the_global_batch(bound: str) -> None:
    """From the second update on, where the batch stays the same and the learning rate is next to nothing."""
    state, _ = make()
    kl = global_kl(state).detach()
    value = kl.sort().values[1:3].mean().item() if bound == "free_bits" else 2 * kl.mean().item()
    for parts in (1, 4):
        train = {"learning_rate": 1e-12, "micro_batch_size": 4 // parts, "max_grad_norm": 0.0}
        state, step = make(loss={bound: value}, train=train)
        step(iter(batches(parts=parts)))
        for network in state.networks:
            network.optimizer.zero_grad = lambda: None  # keep what the update used
        step(iter(batches(parts=parts)))
        ours = {name: p.grad.clone() for name, p in state.autoencoder.named_parameters()}

        state.autoencoder.zero_grad(set_to_none=True)
        (batch,) = batches()
        posterior = state.autoencoder.encode(batch.images).latent_dist
        y = state.autoencoder.decode(posterior.mean + posterior.std * batch.noise).sample
        per_channel = global_kl(state)
        assert (per_channel > value).any() if bound == "free_bits" else per_channel.mean() < value
        bounded = (
            per_channel.clamp(min=value).sum() if bound == "free_bits" else 4 * (per_channel.mean() - value).abs()
        )
        elements = 16 * 16 / batch.images[0].numel()
        ((y - batch.images).square().mean() + 0.1 * bounded * elements).backward()
        scale = max(p.grad.abs().max().item() for p in state.autoencoder.parameters())
        for name, parameter in state.autoencoder.named_parameters():
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=2e-5 * scale, msg=name)


def test_moments_are_measured_in_updates_that_are_reported() -> None:
    state, step = make(train={"log_steps": 2})
    step(iter(batches()))
    assert state.posterior is None
    expected = global_kl(state).detach()
    step(iter(batches()))
    assert state.posterior is not None
    _, square, variance, logvar = state.posterior
    torch.testing.assert_close(0.5 * (square + variance - 1 - logvar), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_fixed_posterior_is_what_the_exported_model_has(optimizer: str) -> None:
    model = {"posterior": "fixed", "posterior_std": 0.3}
    state, step = make(model=model, train={"optimizer": optimizer, "max_grad_norm": 0.0})
    (batch,) = batches()
    with torch.no_grad():
        latent = state.family.bottleneck(state.family.encode(batch.images), batch.noise)
    torch.testing.assert_close(latent.z, latent.mean + 0.3 * batch.noise)
    before = state.autoencoder.quant_conv.weight.clone()
    for seed in range(3):
        step(iter(batches(seed=seed)))
    std = state.autoencoder.encode(batch.images).latent_dist.std
    torch.testing.assert_close(std, torch.full_like(std, 0.3))
    assert not torch.equal(state.autoencoder.quant_conv.weight[:4], before[:4])


def test_a_floor_lets_the_deviation_be_larger_and_not_smaller() -> None:
    state, _ = make(model={"posterior": "floor", "posterior_std": 0.5})
    hidden = torch.zeros(1, 8, 2, 2)
    hidden[:, 4], hidden[:, 5] = -5.0, 3.0
    std = state.family.bottleneck(hidden).stored["std"]
    assert std[0, 0].unique().item() == pytest.approx(0.5)
    assert std[0, 1].unique().item() == pytest.approx(torch.tensor(1.5).exp().item())


def test_channels_that_carry_nothing_are_told_when_their_number_changes() -> None:
    health = Health(disc_loss="hinge", adaptive=True, max_nonfinite_steps=3)
    reading = MeterReading(means={}, num_finite=1, num_skipped=0, nonfinite={}, row=0)

    def lines(active: int) -> list[str]:
        summary = PosteriorSummary(kl_per_channel=[0.1] * 4, active_channels=active, mutual_information=0.1)
        return health.lines(reading, posterior=summary, step=7)

    assert lines(4) == []
    (line,) = lines(1)
    assert line.startswith("step 7: posterior: 3 of 4 latent channels carry nothing of the images; a lower")
    assert lines(1) == []
    assert lines(4) == ["step 7: posterior: all 4 latent channels are active"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--loss.free_bits", "0.1", "--loss.capacity", "1"], "--loss.free_bits and --loss.capacity both bound"),
        (["--loss.beta", "1", "--loss.kl_weight", "2"], "--loss.beta is --loss.kl_weight by another name"),
        (["--model.posterior", "fixed", "--train.weight_decay", "0.1"], "train.weight_decay would move"),
        (["--loss.capacity", "-1"], "loss.capacity is -1"),
    ],
)
def test_settings_that_cannot_be_are_told(words: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=r"loss|train") as error:
        parse(Config, words, prog="ldm-vae train")
    assert told in str(error.value)


def test_a_capacity_may_be_a_ramp_and_beta_a_cycle() -> None:
    words = ["--loss.capacity", "{start: 0, end: 1, to_step: 9}", "--loss.beta", "{end: 1, to_step: 8, cycles: 4}"]
    loss = parse(Config, words, prog="ldm-vae train").loss
    assert loss.capacity.end == 1
    assert loss.rate_weight.cycles == 4
