"""The step against the published formulas, written plainly."""

from __future__ import annotations

import copy

import lpips
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.config.run import Config
from ldm_vae.images.training import TrainingBatch
from ldm_vae.training.health import Health
from ldm_vae.training.state import TrainingState
from tests.tiny import tiny_config
from tests.training.steps import LAM_BEFORE, make, make_batch

RTOL = 5e-5  # 1e-5 were seen


def plain_gradients(
    state: TrainingState, config: Config, batch: TrainingBatch, network: lpips.LPIPS, *, adversarial: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Losses and gradients as published, each network run for each loss, divided by the elements of an image."""
    model = copy.deepcopy(state.autoencoder)
    likelihood_logvar = state.trainable.likelihood_logvar.detach().clone().requires_grad_()
    x, loss = batch.images[:, config.data.target_channels or slice(None)], config.loss
    num_elements = x[0].numel()

    def reconstruct() -> tuple[Tensor, Tensor, Tensor]:
        posterior = model.encode(batch.images).latent_dist
        z = posterior.mean + posterior.std * batch.noise
        return model.decode(z).sample, posterior.kl(), posterior.mean

    y, kl, _ = reconstruct()
    pixel = (x - y).abs() if loss.reconstruction == "l1" else (x - y) ** 2
    rec = (pixel + loss.perceptual_weight * network(x, y)).sum() / len(x)  # the sum over an image, as published
    if loss.learn_logvar:
        rec = rec / likelihood_logvar.exp() + likelihood_logvar * num_elements
    total = rec + loss.kl_weight * kl.sum() / len(x)
    lam = 0.0
    figures = {"kl": kl.mean().item() / num_elements, "rec": pixel.mean().item()}
    grad_d: dict[str, Tensor] = {}
    if adversarial:
        assert state.discriminator is not None
        d = copy.deepcopy(state.discriminator.module)
        g = -d.logits(y).mean()
        weight = model.decoder.conv_out.weight
        norm_rec = torch.autograd.grad(rec, weight, retain_graph=True)[0].norm()
        norm_g = torch.autograd.grad(g, weight, retain_graph=True)[0].norm()
        published = (norm_rec / (num_elements * norm_g + num_elements * 1e-4)).clamp(0, 1e4 / num_elements)
        assert 0 < published.item() < 0.9 * 1e4 / num_elements  # the clamp isn't at work
        measured = loss.disc_weight * published.item()
        lam = {"same_step": measured, "lagged": LAM_BEFORE, "off": loss.disc_weight}[loss.adaptive_weight]
        total = total + lam * num_elements * g
        y_again = reconstruct()[0].detach()
        real, fake = d.logits(x), d.logits(y_again)
        if loss.disc_loss == "hinge":
            d_loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        else:
            d_loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        grads = torch.autograd.grad(d_loss, list(d.parameters()))
        grad_d = {name: grad for (name, _), grad in zip(d.named_parameters(), grads, strict=True)}
        figures |= {"g": g.item(), "d": d_loss.item(), "lam": lam, "measured": measured}
    (total / num_elements).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if loss.learn_logvar:
        gradients["likelihood_logvar"] = likelihood_logvar.grad
    return gradients, grad_d, figures


def assert_gradients(module: torch.nn.Module, expected: dict[str, Tensor], *, prefix: str = "") -> None:
    trained = {name.removeprefix(prefix): p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert set(trained) == set(expected)
    scale = max(grad.abs().max() for grad in expected.values())
    for name, gradient in trained.items():
        torch.testing.assert_close(gradient, expected[name], rtol=RTOL, atol=RTOL * scale.item(), msg=name)
        assert gradient.norm() > 0 or name.endswith("to_k.bias"), name  # which the softmax's result doesn't depend on


@pytest.mark.parametrize("learn_logvar", [False, True])
@pytest.mark.parametrize(
    ("disc_start", "adaptive_weight", "disc_loss", "reconstruction"),
    [(9, "lagged", "hinge", "l1"), (0, "lagged", "hinge", "l1"), (0, "same_step", "vanilla", "l2"),
     (0, "same_step", "hinge", "l1"), (0, "off", "hinge", "l1")],
)  # fmt: skip
def test_losses_and_gradients_are_the_published_ones(
    learn_logvar: bool, disc_start: int, adaptive_weight: str, disc_loss: str, reconstruction: str
) -> None:
    loss = {"disc_start": disc_start, "adaptive_weight": adaptive_weight, "disc_loss": disc_loss}
    loss |= {"learn_logvar": learn_logvar, "logvar_init": 0.3, "kl_weight": 1e-2, "reconstruction": reconstruction}
    config = tiny_config(data={"resolution": 64}, loss=loss, train={"max_grad_norm": 0.0})
    state, step, network = make(config)
    batch = make_batch()
    adversarial = disc_start == 0
    expected, expected_d, figures = plain_gradients(state, config, batch, network, adversarial=adversarial)

    step.micro_batch(batch, adversarial=adversarial)

    assert_gradients(state.generator.module, expected, prefix="autoencoder.")
    if adversarial:
        assert_gradients(state.discriminator.module, expected_d)
    else:
        assert all(p.grad is None for p in state.discriminator.parameters)

    state.generator.optimizer.zero_grad()
    state.discriminator.optimizer.zero_grad()
    step(iter([batch]))
    means = state.meter.read().means
    for name in figures.keys() - {"measured"}:
        assert means[name] == pytest.approx(figures[name], rel=RTOL), name
    if adversarial:
        assert state.lam.item() == pytest.approx(figures["measured"], rel=1e-4)


def test_a_target_of_some_channels_has_the_losses_of_these_alone() -> None:
    """Four channels in, three of them out, in an order of their own."""
    config = tiny_config(
        data={"resolution": 64, "target_channels": [3, 0, 2]},
        model={"in_channels": 4, "out_channels": 3},
        loss={"disc_start": 0, "kl_weight": 1e-2},
        train={"max_grad_norm": 0.0},
    )
    state, step, network = make(config)
    batch = make_batch(channels=4)
    expected, expected_d, figures = plain_gradients(state, config, batch, network, adversarial=True)
    step.micro_batch(batch, adversarial=True)
    assert_gradients(state.generator.module, expected, prefix="autoencoder.")
    assert_gradients(state.discriminator.module, expected_d)
    step.forget_gradients()
    step(iter([batch]))
    means = state.meter.read().means
    assert means["rec"] == pytest.approx(figures["rec"], rel=RTOL)
    assert means["kl"] == pytest.approx(figures["kl"], rel=RTOL)


def test_learnt_likelihood_logvar_moves_towards_the_loss() -> None:
    """Its optimum is s = log(rec): the gradient 1 - rec/exp(s) takes it there, from either side."""
    for init, sign in ((3.0, -1), (-5.0, 1)):
        loss = {"learn_logvar": True, "logvar_init": init}
        state, step, _ = make(tiny_config(data={"resolution": 64}, loss=loss))
        step(iter([make_batch()]))
        assert sign * (state.trainable.likelihood_logvar.item() - init) > 1e-4


@pytest.mark.parametrize("learn_logvar", [False, True])
def test_accumulation_equals_one_large_batch(learn_logvar: bool) -> None:
    batch = make_batch(4)
    parts = [TrainingBatch(images=batch.images[i : i + 1], noise=batch.noise[i : i + 1], skipped=[]) for i in range(4)]
    lams, figures, gradients = [], [], []
    for micro_batch_size, batches in ((4, [batch]), (1, parts)):
        config = tiny_config(
            data={"resolution": 64},
            loss={"learn_logvar": learn_logvar, "kl_weight": 1.0},
            train={"micro_batch_size": micro_batch_size},
        )
        state, step, _ = make(config)
        for network in (state.generator, state.discriminator):
            network.optimizer.zero_grad = lambda: None  # keep what the update used
        step(iter(batches))
        lams.append(state.lam.item())
        figures.append(state.meter.read().means)
        gradients.append([p.grad.clone() for p in state.generator.parameters + state.discriminator.parameters])
    assert lams[0] == pytest.approx(lams[1], rel=1e-4)
    assert lams[0] != LAM_BEFORE
    assert figures[0]["lam_clamped"] == figures[1]["lam_clamped"] == 0
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    scale = max(whole.abs().max().item() for whole in gradients[0])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-4, atol=5e-6 * scale)


def test_first_adversarial_step_gives_the_generator_no_g() -> None:
    """The adaptive weight lam is measured in it, and used in the next one."""
    config = tiny_config(data={"resolution": 64})
    state, step, _ = make(config)
    state.lam.zero_()
    step(iter([make_batch()]))
    first = state.meter.read().means
    assert first["lam"] == 0
    assert first["d"] > 0
    measured = state.lam.item()
    assert measured > 0
    step(iter([make_batch(seed=2)]))
    assert state.meter.read().means["lam"] == pytest.approx(measured, rel=1e-6)


def test_lam_is_at_its_clamp_only_where_the_generator_has_it() -> None:
    """D's gradient is so small at first that the lam measured is at the clamp; the first update's own is 0."""
    state, step, _ = make(tiny_config(data={"resolution": 64}, loss={"disc_warmup_steps": 3}))
    with torch.no_grad():
        for weight in state.discriminator.parameters:
            weight.mul_(1e-3)
    state.lam.zero_()
    clamped = []
    for seed in range(4):
        step(iter([make_batch(seed=seed)]))
        means = state.meter.read().means
        clamped.append(means["lam_clamped"])
        said = Health(disc_loss="hinge", adaptive=True, max_nonfinite_steps=3).judge(means)
        assert said.startswith("lam is at its clamp") == (means["lam"] > 0)
    assert clamped == [0, 0, 1, 1]  # steps 3 and 4 are warm-up, disc_start being 2


def test_a_fixed_lam_has_no_clamp() -> None:
    state, step, _ = make(tiny_config(data={"resolution": 64}, loss={"adaptive_weight": "off"}))
    for seed in range(4):
        step(iter([make_batch(seed=seed)]))
        means = state.meter.read().means
    assert means["lam"] > 0
    assert means["lam_clamped"] == 0


def test_disc_warmup_keeps_g_from_the_generator() -> None:
    config = tiny_config(data={"resolution": 64}, loss={"disc_warmup_steps": 3})
    state, step, _ = make(config)
    used = []
    for seed in range(4):
        step(iter([make_batch(seed=seed)]))
        used.append(state.meter.read().means["lam"])
    assert used[0] == used[1] == 0  # steps 3 and 4, disc_start being 2
    assert used[2] > 0


def test_decoder_only_leaves_encoder_and_quant_conv_bit_unchanged() -> None:
    state, step, _ = make(tiny_config(data={"resolution": 64}, model={"decoder_only": True}))
    before = copy.deepcopy(state.autoencoder.state_dict())
    for seed in range(3):
        step(iter([make_batch(seed=seed)]))
    for name, weight in state.autoencoder.state_dict().items():
        frozen = name.startswith(("encoder.", "quant_conv."))
        assert torch.equal(weight, before[name]) == frozen, name


@pytest.mark.parametrize("broken", ["images", "discriminator"])
def test_non_finite_step_changes_nothing_and_is_named(broken: str) -> None:
    state, step, _ = make(tiny_config(data={"resolution": 64}))
    step(iter([make_batch()]))
    state.meter.read()
    networks = (state.generator, state.discriminator)
    before = [[p.detach().clone() for p in network.parameters] for network in networks]
    moments = copy.deepcopy([network.optimizer.state_dict()["state"] for network in networks])
    lam = state.lam.item()
    batch = make_batch()
    if broken == "images":
        batch.images[0, 0, 0, 0] = float("nan")
    else:
        with torch.no_grad():
            kept = state.discriminator.parameters[0].clone()
            state.discriminator.parameters[0].fill_(float("inf"))
    step(iter([batch]))
    if broken == "discriminator":
        with torch.no_grad():
            state.discriminator.parameters[0].copy_(kept)
    reading = state.meter.read()
    assert reading.num_skipped == reading.row == 1
    assert {"rec", "gradient"} <= set(reading.nonfinite) if broken == "images" else "d" in reading.nonfinite
    assert state.lam.item() == lam
    for network, weights, moment in zip(networks, before, moments, strict=True):
        for parameter, weight in zip(network.parameters, weights, strict=True):
            assert torch.equal(parameter, weight)
        torch.testing.assert_close(network.optimizer.state_dict()["state"], moment, rtol=0, atol=0)
    step(iter([make_batch()]))
    assert state.meter.read().row == 0


def test_each_network_runs_once() -> None:
    """One autoencoder forward, one decoder backward a micro-batch."""
    state, step, _ = make(tiny_config(data={"resolution": 64}))
    calls = {"encoder": 0, "decoder": 0, "backward": 0}

    def count(name: str) -> None:
        calls[name] += 1

    state.autoencoder.encoder.register_forward_hook(lambda *_: count("encoder"))
    state.autoencoder.decoder.mid_block.register_forward_hook(lambda *_: count("decoder"))
    state.autoencoder.decoder.mid_block.register_full_backward_hook(lambda *_: count("backward"))
    step(iter([make_batch()]))
    assert calls == {"encoder": 1, "decoder": 1, "backward": 1}


def test_batch_norm_discriminator_judges_real_and_fake_apart() -> None:
    config = tiny_config(data={"resolution": 64}, loss={"disc_norm": "batch", "adaptive_weight": "same_step"})
    state, step, network = make(config)
    batch = make_batch()
    _, expected_d, _ = plain_gradients(state, config, batch, network, adversarial=True)
    step.micro_batch(batch, adversarial=True)
    assert_gradients(state.discriminator.module, expected_d)
    assert not list(state.discriminator.module.buffers())
