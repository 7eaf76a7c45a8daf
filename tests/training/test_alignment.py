"""Alignment, perceptual distance and discriminator of frozen vision networks in a step, against plain autograd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_vae.config.run import Config
from ldm_vae.losses.alignment import alignment_loss
from ldm_vae.training.loop import train
from ldm_vae.training.perceptual import load_perceptual
from ldm_vae.training.state import TrainingState
from tests.tiny import tiny_config
from tests.training.runs import metrics, weights
from tests.training.test_equivariance import batches_of, config_of, make
from tests.vision import save_vision

WEIGHT = 0.4
RATIO_BEFORE = 0.3  # of the step before the one under test
LAM_BEFORE = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    save_vision("dinov2", folder)
    return folder


def aligned(folder: Path, **loss: Any) -> dict[str, Any]:
    return {
        "alignment": "dinov2",
        "alignment_weights": str(folder),
        "alignment_weight": WEIGHT,
        "alignment_cosine_margin": 0.1,
        "alignment_distance_margin": 0.05,
        **loss,
    }


def plain_alignment(state: TrainingState, z: Tensor, images: Tensor) -> Tensor:
    """2x2 latents a place, and a place a patch of 4 pixels: the picture is seen as it is."""
    term = state.objective.alignment
    assert term is not None
    assert term.frozen is not None
    with torch.no_grad():
        (features,) = term.frozen.trunk(images)
    projected = torch.nn.functional.conv2d(torch.nn.functional.avg_pool2d(z, 2), term.network.layer.weight)
    return alignment_loss(projected, features, cosine_margin=0.1, distance_margin=0.05)


MODELS = {"quant_conv": {}, "conv_out": {"use_quant_conv": False}, "tiny": {"family": "tiny"}}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("disc_start", [0, 9])
def test_gradients_and_ratio_are_those_of_plain_autograd(
    folder: Path, model: dict[str, Any], disc_start: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn, "LeakyReLU", lambda slope: torch.nn.SiLU())
    loss = aligned(folder, disc_start=disc_start)
    config = config_of(loss, model=model, train={"micro_batch_size": 4 // parts})
    state, step = make(config)
    state.objective.balance.ratio.fill_(RATIO_BEFORE)
    state.lam.fill_(LAM_BEFORE)
    family, bottleneck = copy.deepcopy(state.family), state.family.bottleneck
    projection = state.objective.alignment.network
    (batch,) = batches_of(config)

    latent = bottleneck(family.encode(batch.images), batch.noise)
    y = family.head(family.decode_features(latent.z))
    of_decoder = (batch.images - y).square().mean()
    if disc_start == 0:
        discriminator = copy.deepcopy(state.discriminator.module)
        of_decoder = of_decoder - LAM_BEFORE * discriminator.logits(discriminator.look(y)).mean()
    alignment = plain_alignment(state, latent.z, batch.images)
    last = family.hidden_layer.weight
    norms = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (of_decoder, alignment)]
    total = of_decoder + WEIGHT * RATIO_BEFORE * alignment
    if bottleneck.has_posterior:
        kl = 0.5 * (latent.mean.square() + latent.posterior_logvar.exp() - 1 - latent.posterior_logvar)
        total = total + 1e-2 * kl.sum() / batch.images.numel()
    trained = [*family.model.parameters(), *projection.parameters()]
    expected = torch.autograd.grad(total, trained)

    for network in state.networks:
        network.optimizer.zero_grad = lambda: None  # keep what the update used
    step(iter(batches_of(config, parts=parts)))
    found = [*state.family.model.parameters(), *projection.parameters()]
    scale = max(gradient.abs().max() for gradient in expected)
    for parameter, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * scale.item())
    means = state.meter.read().means
    assert means["alignment"] == pytest.approx(alignment.item(), rel=1e-4)
    assert means["lam_alignment"] == pytest.approx(WEIGHT * RATIO_BEFORE)
    assert state.objective.balance.ratio.item() == pytest.approx((norms[0] / (norms[1] + 1e-4)).item(), rel=1e-3)


def test_the_first_update_has_no_alignment_and_a_broken_one_keeps_the_ratio(folder: Path) -> None:
    config = config_of(aligned(folder), train={"max_train_steps": 4})
    state, step = make(config)
    before = copy.deepcopy(state.objective.alignment.network.layer.weight)
    step(iter(batches_of(config)))
    assert torch.equal(state.objective.alignment.network.layer.weight, before)
    ratio = state.objective.balance.ratio.clone()
    assert ratio > 0
    (broken,) = batches_of(config, step=3)
    broken.images[0, 0, 0, 0] = float("nan")
    step(iter([broken]))
    assert torch.equal(state.objective.balance.ratio, ratio)
    step(iter(batches_of(config, step=4)))
    assert not torch.equal(state.objective.alignment.network.layer.weight, before)
    assert not torch.equal(state.objective.balance.ratio, ratio)


def test_in_bf16_it_is_measured_about_the_same(folder: Path, tmp_path: Path) -> None:
    loss = aligned(folder, disc_start=0, perceptual="dinov3", discriminator="siglip2")
    for use in ("perceptual", "discriminator"):
        save_vision(loss[use], tmp_path / use)
        loss[f"{use}_weights"] = str(tmp_path / use)
    ratios = {}
    for precision in ("no", "bf16"):
        config = config_of(loss, train={"mixed_precision": precision})
        state, step = make(config)
        for number in (2, 3):
            step(iter(batches_of(config, step=number)))
        assert state.objective.balance.ratio.dtype == torch.float32
        assert state.meter.read().num_finite == 2
        ratios[precision] = state.objective.balance.ratio.item()
    assert ratios["bf16"] == pytest.approx(ratios["no"], rel=0.1)
    assert ratios["bf16"] != ratios["no"]


def test_an_update_looks_once_at_each_picture(folder: Path) -> None:
    """With a transform beside: aligned are the pictures that were encoded."""
    loss = aligned(folder, equivariance_weight=0.5, equivariance_scales=[0.75], discriminator="dinov2", disc_start=0)
    config = config_of(loss | {"discriminator_weights": str(folder), "consistency_weight": 0.1})
    state, step = make(config)
    seen: dict[str, list[Tensor]] = {"alignment": [], "discriminator": []}
    for name, network in (
        ("alignment", state.objective.alignment.frozen),
        ("discriminator", state.discriminator.module.frozen),
    ):
        network.trunk.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    (batch,) = batches_of(config)
    step(iter([batch]))
    assert len(seen["alignment"]) == 1
    torch.testing.assert_close(seen["alignment"][0], batch.images)
    fake, real = seen["discriminator"]
    assert fake.requires_grad
    assert not real.requires_grad
    torch.testing.assert_close(real, batch.images)


def test_with_its_weight_at_zero_or_without_it_the_run_is_the_same(
    folder: Path, pictures: Path, tmp_path: Path
) -> None:
    """What aligns is there, and draws nothing from the other networks' randomness."""

    def run(name: str, loss: dict[str, Any]) -> Path:
        config = tiny_config(output_dir=tmp_path / name, data={"train": str(pictures)}, loss=loss)
        train(config)
        return tmp_path / name

    with_it, without = run("with", aligned(folder, alignment_weight=0.0)), run("without", {})
    ours, theirs = weights(with_it), weights(without)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_latents_come_nearer_to_the_features(pictures: Path, tmp_path: Path) -> None:
    """With the offline network, of real weights."""
    loss = {"alignment": "efficientnet_lite0", "alignment_weight": 0.5, "disc_weight": 0.0}
    config = tiny_config(
        output_dir=tmp_path / "run",
        data={"train": str(pictures)},
        loss=loss | {"alignment_cosine_margin": 0.0, "alignment_distance_margin": 0.0},
        train={"max_train_steps": 20, "learning_rate": 1e-2, "log_steps": 1, "validation_steps": 20},
    )
    train(config)
    figures = [line["alignment"] for line in metrics(tmp_path / "run") if "alignment" in line]
    assert figures[-1] < 0.8 * figures[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"decoder_only": True}}, "loss.alignment trains the encoder's latents, which model.decoder_only"),
        ({"model": {"family": "tiny", "teacher": "x"}}, "loss.alignment trains the encoder's latents, which model.te"),
        (
            {"loss": {"disc_norm": "batch", "discriminator": "dinov2"}},
            "loss.disc_norm is batch, which is for the disc",
        ),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    loss = aligned(folder) | fields.pop("loss", {})
    with pytest.raises(ValueError, match=message) as error:
        config_of(loss, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("choice", ["alignment", "perceptual", "discriminator"])
def test_a_missing_teacher_is_one_line(choice: str, tmp_path: Path) -> None:
    config: Config = tiny_config(loss={choice: "dinov3", f"{choice}_weights": str(tmp_path)})
    with pytest.raises(ValueError, match=rf"loss.{choice}_weights: {tmp_path} holds no config.json") as error:
        make(config)
    assert "hf download facebook/dinov3-vitb16-pretrain-lvd1689m --local-dir" in str(error.value)


def test_perceptual_distance_compares_all_tokens_of_all_layers(folder: Path) -> None:
    """As dino-perceptual 0.1 has it, but for the mean over channels, of which it is the sum."""
    distance = load_perceptual("dinov2", weights=str(folder))
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 16, 24, generator=rng) * 2 - 1
    reconstruction = (images + 0.1 * torch.randn(images.shape, generator=rng)).requires_grad_()
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(folder)
    mean, std = (torch.tensor(each)[:, None, None] for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    states = [
        model((each / 2 + 0.5 - mean) / std, output_hidden_states=True).hidden_states[1:]
        for each in (images, reconstruction)
    ]
    layers = [
        16
        * (torch.nn.functional.normalize(a, dim=-1) - torch.nn.functional.normalize(b, dim=-1)).square().mean((1, 2))
        for a, b in zip(*states, strict=True)
    ]
    found = distance(images, reconstruction)
    torch.testing.assert_close(found, torch.stack(layers).mean(0), rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert reconstruction.grad.abs().sum() > 0
    assert distance(images[..., :13, :19], images[..., :13, :19]).eq(0).all()  # any size
