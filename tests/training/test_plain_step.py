"""Whole runs against the step written plainly, update by update, in each setting that changes the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldm_vae.config.run import Config
from ldm_vae.images.training import TrainingBatch
from ldm_vae.training import loop, opening, terms
from ldm_vae.training.state import TrainingState
from tests.plain_step import PlainRun, SmoothDistance, smooth_patch_gan
from tests.tiny import tiny_config

STEPS = 30
CHANNELS = 4
CLOSE = 1e-6

Settings = dict[str, dict[str, Any]]
GAN = {"loss": {"disc_start": 5}}
CASES: dict[str, Settings] = {
    "lagged": GAN,
    "same_step": {"loss": {"disc_start": 5, "adaptive_weight": "same_step", "disc_loss": "vanilla"}},
    "not_adaptive": {
        "loss": {"disc_start": 0, "adaptive_weight": "off", "disc_weight": 0.01, "perceptual": "none"},
        "train": {"max_grad_norm": 0.0},
    },
    "decoder_only": GAN | {"model": {"decoder_only": True}},
    "accumulation": {
        "loss": {"disc_start": 5, "learn_logvar": True, "logvar_init": 0.5},
        "train": {"micro_batch_size": 1, "lr_scheduler": "linear", "lr_warmup_steps": 4},
    },
    "gaussian": {
        "loss": {"disc_start": 5, "likelihood": "gaussian", "logvar_init": -1.0},
        "train": {"micro_batch_size": 2},
    },
    "logistic": {
        "loss": {"disc_start": 5, "likelihood": "logistic", "logvar_init": 1.0},
        "model": {"decoder_only": True},
    },
    "weight_decay": GAN | {"train": {"weight_decay": 0.3, "lr_scheduler": "cosine", "lr_warmup_steps": 3}},
    "clipping": GAN | {"train": {"max_grad_norm": 0.02, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 7}},
    "regularised": {
        "loss": {
            "disc_start": 5,
            "disc_lecam_weight": 0.5,
            "disc_lecam_decay": 0.7,
            "disc_r1_weight": 3.0,
            "disc_r1_every": 2,
        },
        "train": {"micro_batch_size": 2},
    },
    "disc_warmup": {
        "loss": {"disc_start": 5, "disc_warmup_steps": 8},
        "train": {"disc_learning_rate": 4e-4, "lr_scheduler": "constant_with_decay", "lr_decay_fraction": 0.5},
    },
}


@dataclass
class RealRun:
    """What a run of the package left."""

    state: TrainingState
    plain: PlainRun  # with the weights that the run began with


def config_of(case: str, *, run: Path, pictures: Path) -> Config:
    changed = CASES[case]
    loss = {"reconstruction": "l2", "perceptual": "efficientnet_lite0", "perceptual_weight": 0.7, "kl_weight": 1e-2,
            "disc_channels": CHANNELS}  # fmt: skip
    train = {"max_train_steps": STEPS, "adam_epsilon": 1e-4, "ema_decay": 0.6, "checkpointing_steps": STEPS}
    return tiny_config(
        output_dir=run,
        model=changed.get("model"),
        data={"train": str(pictures), "resolution": 16},
        loss=loss | changed.get("loss", {}),
        train=train | changed.get("train", {}),
    )


def run_both(config: Config) -> RealRun:
    """Train as the config says, and repeat it plainly on the same images."""
    build_state, open_batches = opening.build_state, opening.open_batches
    states: list[TrainingState] = []
    plain: list[PlainRun] = []
    batches: list[TrainingBatch] = []

    def built(*args: Any, **kwargs: Any) -> TrainingState:
        states.append(build_state(*args, **kwargs))
        plain.append(plain_run(states[0], config))
        return states[0]

    def opened(*args: Any, **kwargs: Any) -> Iterator[TrainingBatch]:
        for batch in open_batches(*args, **kwargs):
            batches.append(batch)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "build_state", built)
        patch.setattr(opening, "open_batches", opened)
        patch.setattr(terms, "load_perceptual", lambda *args, **kwargs: SmoothDistance())
        patch.setattr(nn, "LeakyReLU", lambda slope: nn.SiLU())
        loop.train(config)
    number = config.train.accumulation(num_processes=1)[1]
    parts = [batches[i * number : (i + 1) * number] for i in range(STEPS)]
    updates = [(torch.cat([b.images for b in part]), torch.cat([b.noise for b in part])) for part in parts]
    for images, noise in updates:
        plain[0].update(images.contiguous(), noise)
    return RealRun(states[0], plain[0])


def plain_run(state: TrainingState, config: Config) -> PlainRun:
    """A plain run with a copy of a state's weights."""
    model = AutoencoderKL.from_config(dict(state.autoencoder.config))
    model.load_state_dict(state.autoencoder.state_dict())
    discriminator = smooth_patch_gan(CHANNELS)
    assert state.discriminator is not None
    discriminator.load_state_dict(state.discriminator.module.layers.state_dict())
    return PlainRun(model, discriminator, None if config.loss.perceptual == "none" else SmoothDistance(), config)


def assert_close(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert ours.keys() == plain.keys()
    differences = {name: (ours[name] - plain[name]).abs().max().item() for name in ours}
    worst = max(differences, key=lambda name: differences[name])
    assert differences[worst] < CLOSE, f"{worst} differs by {differences[worst]:.2g}"


@pytest.mark.parametrize("case", CASES)
def test_run_equals_the_plain_step(case: str, tmp_path: Path, pictures: Path) -> None:
    config = config_of(case, run=tmp_path / "run", pictures=pictures)
    real = run_both(config)
    state, plain = real.state, real.plain
    assert state.discriminator is not None
    assert state.ema is not None
    assert_close(state.autoencoder.state_dict(), plain.model.state_dict())
    assert_close(state.discriminator.module.layers.state_dict(), plain.discriminator.state_dict())
    averages = [average.contiguous() for average in state.ema.shadow_params]
    assert_close(dict(enumerate(averages)), dict(enumerate(plain.average)))  # type: ignore[arg-type]
    assert state.trainable.likelihood_logvar.item() == pytest.approx(plain.logvar.item(), abs=CLOSE)
    # Float32: after 30 updates the plain step alone, with one thread and with two, differs by 0.8e-5.
    assert state.lam.item() == pytest.approx(plain.lam, rel=5e-5)
    assert plain.measured
    assert all(0 < balance < 1e4 for balance in plain.measured)  # at the clamp, the two would agree in any case
