"""Runs with a likelihood: its scale is learnt, kept and shown, and the loss is the bound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm_vae.config.parsing import parse
from ldm_vae.config.run import Config
from ldm_vae.images.training import TrainingBatch
from ldm_vae.losses.likelihood import LikelihoodKind
from ldm_vae.training.loop import train
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from tests.tiny import tiny_config
from tests.training.checkpoints import trained
from tests.training.runs import assert_bit_equal, last_checkpoint, metrics
from tests.training.test_step import make_batch

KINDS: tuple[LikelihoodKind, ...] = ("gaussian", "laplace", "logistic")


def fields(output: Path, pictures: Path, *, loss: dict[str, Any], **train: Any) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "data": {"train": str(pictures)},
        "loss": {"disc_weight": 0.0, "beta": 1.0, "logvar_init": -1.0} | loss,
        "train": {"adam_epsilon": 1e-4, "log_steps": 1, "checkpointing_steps": 3, **train},
    }


def test_an_interrupted_run_goes_on_bit_equal(pictures: Path, tmp_path: Path) -> None:
    loss = {"likelihood": "laplace"}
    train(tiny_config(**fields(tmp_path / "whole", pictures, loss=loss)))
    for steps, resumed in ((3, None), (6, "latest")):
        again = fields(tmp_path / "cut", pictures, loss=loss, max_train_steps=steps, resume_from_checkpoint=resumed)
        train(tiny_config(**again))
    assert_bit_equal(tmp_path / "whole", tmp_path / "cut")

    lines = metrics(tmp_path / "whole")
    for line in lines:
        assert line["loss"] == pytest.approx(line["nll"] + line["kl"], rel=1e-5)
        assert line["rec"] > 0  # shown all the same
    scales = [line["likelihood_logvar"] for line in lines]
    assert scales[0] == -1
    assert len(set(scales)) == len(scales)
    found = load_file(last_checkpoint(tmp_path / "whole") / "state.safetensors")["likelihood_logvar"].item()
    assert load_run_autoencoder(tmp_path / "whole", checkpoint="latest", weights="ema").likelihood_logvar == found
    assert -1.1 < found < -0.9
    assert found != -1


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_moves_towards_the_errors(kind: LikelihoodKind) -> None:
    """From either side: where it is too wide it shrinks, where it is too narrow it grows."""
    for init, sign in ((3.0, -1), (-7.0, 1)):
        state, step = trained(
            tiny_config(data={"resolution": 64}, loss={"likelihood": kind, "logvar_init": init}), steps=0
        )
        step(iter([make_batch()]))
        assert sign * (state.trainable.likelihood_logvar.item() - init) > 1e-4


def test_the_calibrated_variance_is_the_mean_squared_error() -> None:
    """Rybkin et al. 2021, "Simple and effective VAE training with calibrated decoders", equation 4."""
    for seed in (1, 2):
        images, noise = make_batch(seed=seed).images, make_batch(seed=seed).noise
        batch = TrainingBatch(images=(images * 127.5).round() / 127.5, noise=noise, skipped=[])
        with torch.no_grad():
            state, _ = trained(tiny_config(data={"resolution": 64}, loss={"likelihood": "gaussian"}), steps=0)
            y = state.trainable(batch.images, batch.noise).reconstruction
        best = ((batch.images - y).square().mean() + (2 / 255) ** 2 / 12).log().requires_grad_()
        loss = state.objective.image_loss(batch.images, y, likelihood_logvar=best, step=0)
        (gradient,) = torch.autograd.grad(loss.total, best)
        assert abs(gradient.item()) < 1e-6
        expected = 0.5 * (1 + best.item() + math.log(2 * math.pi)) + math.log(127.5)
        assert loss.total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--loss.likelihood", "gaussian", "--loss.learn_logvar", "true"], "leave --loss.learn_logvar out"),
        (["--loss.likelihood", "cauchy"], "loss.likelihood is 'cauchy'; it must be one of none, gaussian, laplace"),
        (
            ["--loss.likelihood", "logistic", "--data.value_range", "0", "1", "--loss.disc_weight", "0"],
            "--loss.likelihood is that of pictures of 8 bits, which --data.value_range makes no use of",
        ),
    ],
)
def test_settings_that_cannot_be_are_told(words: list[str], told: str) -> None:
    with pytest.raises(ValueError, match="likelihood") as error:
        parse(Config, words, prog="ldm-vae train")
    assert told in str(error.value)
