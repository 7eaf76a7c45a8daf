"""What an update does with its gradients: clipping, learning rates, the average, precision; and what plugs into it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_vae.config.run import Config
from ldm_vae.losses.term import Term
from ldm_vae.models.bottlenecks.gaussian import Gaussian
from ldm_vae.models.trainable import TrainableAutoencoder
from ldm_vae.training import terms as table
from ldm_vae.training.checkpoint import load_checkpoint
from ldm_vae.training.state import TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from ldm_vae.training.terms import build_objective
from tests.tiny import tiny_config
from tests.training.checkpoints import save_at
from tests.training.steps import make, make_batch
from tests.training.test_step import plain_gradients


def build(config: Config) -> tuple[TrainingState, TrainingStep]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    return state, TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)


def clone(network: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.module.named_parameters()}


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_each_network_is_updated_by_adamw_on_its_own_clipped_gradient(max_grad_norm: float) -> None:
    """With an epsilon above the gradients, so that their size shows in the first update."""
    train = {"max_grad_norm": max_grad_norm, "weight_decay": 0.1, "adam_epsilon": 0.1, "disc_learning_rate": 3e-3}
    config = tiny_config(data={"resolution": 64}, train=train)
    state, step, network = make(config)
    batch = make_batch()
    expected, expected_d, _ = plain_gradients(state, config, batch, network, adversarial=True)
    plain = [copy.deepcopy(state.autoencoder), copy.deepcopy(state.discriminator.module)]
    norms = []
    for module, gradients, rate in zip(plain, (expected, expected_d), (1e-3, 3e-3), strict=True):
        for name, parameter in module.named_parameters():
            parameter.grad = gradients[name].clone()
        norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm or 1e9).item())
        torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.5, 0.9), eps=0.1, weight_decay=0.1).step()
    assert min(norms) > 2 * max_grad_norm  # both are clipped,
    assert max(norms) > 1.2 * min(norms)  # and by different factors
    starts = [clone(state.generator), clone(state.discriminator)]

    step(iter([batch]))

    for start, module, prefix, trained in zip(
        starts, plain, ("autoencoder.", ""), (state.generator.module, state.discriminator.module), strict=True
    ):
        after = dict(trained.named_parameters())
        for name, parameter in module.named_parameters():
            moved, wanted = after[prefix + name] - start[prefix + name], parameter - start[prefix + name]
            assert wanted.abs().max() > 0
            torch.testing.assert_close(moved, wanted, rtol=1e-3, atol=2e-7, msg=name)


def test_average_follows_the_updated_weights_by_its_decay() -> None:
    """The decay warms up as in diffusers: 0 in the first update, then (1 + t) / (10 + t), up to the one asked for."""
    state, step = build(tiny_config(train={"ema_decay": 0.25}))
    name, parameter = next(iter(state.autoencoder.named_parameters()))
    average = parameter.detach().clone()
    for t in range(4):
        step(iter([make_batch_of(32)]))
        decay = min(0.25, (1 + t) / (10 + t)) if t else 0.0
        average = decay * average + (1 - decay) * parameter.detach()
        torch.testing.assert_close(state.ema.shadow_params[0], average, rtol=1e-6, atol=1e-8, msg=name)
        if t:
            assert (average - parameter).abs().max() > 1e-5


def make_batch_of(side: int, *, seed: int = 1, size: int = 4) -> Any:
    batch = make_batch(size, seed=seed)
    return dataclasses.replace(
        batch, images=F.interpolate(batch.images, side), noise=F.interpolate(batch.noise, side // 2)
    )


def test_discriminator_starts_at_disc_start_with_a_schedule_of_its_own_updates() -> None:
    config = tiny_config(
        loss={"disc_start": 2},
        train={"max_train_steps": 6, "lr_scheduler": "linear", "disc_learning_rate": 4e-3, "adam_epsilon": 1e-4},
    )
    state, step = build(config)
    start = clone(state.discriminator)
    for update in range(6):
        expected = 4e-3 * (1 - max(0, update - 2) / 4)
        assert state.discriminator.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        assert state.generator.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * (1 - update / 6))
        step(iter([make_batch_of(32, seed=update)]))
        moved = any(not torch.equal(weight, start[name]) for name, weight in clone(state.discriminator).items())
        assert moved == (update >= 2)
        assert ("d" in state.meter.read().means) == (update >= 2)
    assert state.learning_rates == {"lr": 0.0, "disc_lr": 0.0}


def test_figures_of_d_in_the_window_of_disc_start_are_means_over_its_steps() -> None:
    apart, together = (build(tiny_config(loss={"disc_start": 2})) for _ in range(2))
    means = []
    for update in range(4):
        apart[1](iter([make_batch_of(32, seed=update)]))
        means.append(apart[0].meter.read().means)
        together[1](iter([make_batch_of(32, seed=update)]))
    window = together[0].meter.read().means
    for name in ("d", "g", "logits_real", "logits_fake", "disc_grad_norm", "lam"):
        assert window[name] == pytest.approx((means[2][name] + means[3][name]) / 2), name
    assert window["rec"] == pytest.approx(sum(mean["rec"] for mean in means) / 4)


def test_bf16_is_for_the_networks_and_what_they_give_is_float32() -> None:
    config = tiny_config(loss={"disc_start": 0}, train={"mixed_precision": "bf16"})
    state, step = build(config)
    batch = make_batch_of(32)
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output.dtype})

    state.autoencoder.decoder.conv_out.register_forward_hook(note("decoder"))
    state.autoencoder.encoder.conv_out.register_forward_hook(note("encoder"))
    state.discriminator.module.layers.register_forward_hook(note("discriminator"))
    step(iter([batch]))
    assert seen == dict.fromkeys(["decoder", "encoder", "discriminator"], torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = state.generator.module(batch.images, batch.noise)
        logits = state.discriminator.module(batch.images, batch.images)
    for tensor in (output.reconstruction, output.latent.mean, output.latent.posterior_logvar, *logits):
        assert tensor.dtype == torch.float32


def test_gradient_penalty_in_bf16_is_that_in_float32() -> None:
    """Also where group norms have few channels a group, for which their faster backward can't be differentiated."""
    penalties = []
    for precision in ("no", "bf16"):
        loss = {"disc_start": 0, "disc_r1_weight": 1.0, "disc_channels": 64}
        state, step = build(tiny_config(loss=loss, train={"mixed_precision": precision}))
        step(iter([make_batch_of(32)]))
        penalties.append(state.meter.read().means["r1"])
    assert penalties[1] == pytest.approx(penalties[0], rel=0.05)
    assert penalties[0] > 0


def test_float32_is_float32_throughout() -> None:
    state, step = build(tiny_config(loss={"disc_start": 0}))
    seen: list[torch.dtype] = []
    for module in (*state.autoencoder.modules(), *state.discriminator.module.modules()):
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    step(iter([make_batch_of(32)]))
    assert set(seen) == {torch.float32}


def test_posterior_logvar_is_clamped_as_published() -> None:
    state, _ = build(tiny_config())
    quant_conv = state.autoencoder.quant_conv
    batch = make_batch_of(32)
    for bias, bound in ((100.0, 20.0), (-100.0, -30.0), (19.0, 19.0), (-29.0, -29.0)):
        with torch.no_grad():
            quant_conv.weight.zero_()
            quant_conv.bias.fill_(bias)
        output = state.trainable(batch.images, batch.noise)
        assert output.latent.posterior_logvar.unique().tolist() == [bound]


def test_weights_of_the_config_are_those_of_the_terms() -> None:
    loss = {"perceptual": "efficientnet_lite0", "perceptual_weight": 0.3, "kl_weight": 0.2, "reconstruction": "l2"}
    objective = build_objective(tiny_config(loss=loss), bottleneck=Gaussian(), device=torch.device("cpu"))
    batch = make_batch(2)
    y = batch.images.flip(0)
    on_images = objective.image_loss(batch.images, y, likelihood_logvar=torch.zeros(()), step=0)
    assert objective.names == ("rec", "perceptual", "kl")
    assert on_images.figures["rec"].item() == pytest.approx((batch.images - y).square().mean().item())
    assert on_images.figures["perceptual"].item() > 0.01
    wanted = on_images.figures["rec"] + 0.3 * on_images.figures["perceptual"]
    assert on_images.total.item() == pytest.approx(wanted.item())
    state, _ = build(tiny_config())
    on_latents = objective.latent_loss(state.trainable(batch.images, batch.noise), batch.images, step=0)
    assert on_latents.total.item() == pytest.approx(0.2 * on_latents.figures["kl"].item())


class Turned:
    """An intervention that turns latents, and with them the images to compare with, by 90 degrees.

    Both are made negative where an image's draw says so.
    """

    def __call__(self, z: Tensor, images: Tensor, draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        sign = draws["sign"][:, None, None, None]
        return torch.rot90(z, 1, (-2, -1)) * sign, torch.rot90(images, 1, (-2, -1)) * sign


def test_an_intervention_changes_latents_and_images_alike_in_losses_and_discriminator() -> None:
    config = tiny_config(loss={"disc_start": 0})
    state, step = build(config)
    state.trainable.interventions = [Turned()]
    batch = make_batch_of(32)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    seen: list[Tensor] = []
    state.discriminator.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    posterior = state.autoencoder.encode(batch.images).latent_dist
    z = (posterior.mean + posterior.std * batch.noise).rot90(1, (-2, -1)) * sign[:, None, None, None]
    x = batch.images.rot90(1, (-2, -1)) * sign[:, None, None, None]
    expected = (x - state.autoencoder.decode(z).sample).abs().mean().item()

    step(iter([dataclasses.replace(batch, draws={"sign": sign})]))

    means = state.meter.read().means
    assert means["rec"] == pytest.approx(expected, rel=1e-5)
    assert means["kl"] == pytest.approx(posterior.kl().mean().item() / batch.images[0].numel(), rel=1e-4)
    assert torch.equal(seen[0], x)


def test_a_term_may_train_a_network_which_the_checkpoint_has(tmp_path: Any) -> None:
    """And its figure, check and sums come from its name alone."""
    probe = nn.Conv2d(4, 1, 1)
    term = Term(
        name="probe",
        on="latents",
        weight=2.0,
        network=probe,
        of=lambda output, images: probe(output.latent.mean).square().mean(),
    )

    def with_term() -> tuple[TrainingState, TrainingStep]:
        listed = table._terms
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(table, "_terms", lambda loss, **run: [*listed(loss, **run), term])
            return build(tiny_config())

    state, step = with_term()
    assert isinstance(state.trainable, TrainableAutoencoder)
    before = probe.weight.detach().clone()
    step(iter([make_batch_of(32)]))
    assert not torch.equal(probe.weight, before)
    assert state.meter.read().means["probe"] > 0
    checkpoint = save_at(state, tmp_path, step=1)
    trained = probe.weight.detach().clone()
    resumed, _ = with_term()
    with torch.no_grad():
        probe.weight.zero_()
    load_checkpoint(resumed, checkpoint)
    assert torch.equal(probe.weight, trained)
