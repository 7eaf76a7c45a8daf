"""The last good checkpoint stays: nothing that isn't finite is saved, or pushes a good one out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ldm_vae.config.run import Config
from ldm_vae.images.training import TrainingBatch
from ldm_vae.training.health import NonFiniteError
from ldm_vae.training.loop import train
from ldm_vae.training.soundness import why_unsound
from ldm_vae.training.state import TrainingState
from ldm_vae.training.step import TrainingStep
from ldm_vae.training.summary import TrainSummary
from tests.tiny import tiny_config
from tests.training.checkpoints import CONFIG, names, trained
from tests.training.runs import metrics
from tests.training.steps import make_batch

RUNAWAY = 1e30


def test_sound_state_is_saved() -> None:
    state, _ = trained()
    assert why_unsound(state, CONFIG) is None


def test_state_after_an_update_that_was_not_finite_is_unsound_until_the_next_that_is() -> None:
    state, step = trained()
    broken = make_batch()
    broken.images[0, 0, 0, 0] = float("nan")
    step(iter([broken]))
    assert why_unsound(state, CONFIG) == "the last update was not finite"
    step(iter([broken]))
    assert why_unsound(state, CONFIG) == "the last 2 updates were not finite"
    step(iter([make_batch()]))
    assert why_unsound(state, CONFIG) is None


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("autoencoder", "decoder.conv_out.bias (autoencoder) is not finite"),
        ("average", "encoder.conv_in.weight (ema) is not finite"),
        ("discriminator", "layers.0.weight (discriminator) is not finite"),
        ("lam", "lam (state) is not finite"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_value_that_is_not_finite_is_named(network: str, said: str, value: float) -> None:
    state, _ = trained(steps=0)
    assert state.discriminator is not None
    assert state.ema is not None
    tensors = {
        "autoencoder": state.autoencoder.decoder.conv_out.bias,
        "average": state.ema.shadow_params[0],
        "discriminator": state.discriminator.module.layers[0].weight,
        "lam": state.lam,
    }
    tensor = tensors[network].data
    tensor[(0,) * tensor.ndim] = value
    assert why_unsound(state, CONFIG) == said


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_finite_weights_that_ran_away_are_unsound(network: str) -> None:
    state, _ = trained()
    run_away(state, network)
    assert why_unsound(state, CONFIG) == "the weights compute values that are not finite"


# Whole runs


def run_away(state: TrainingState, network: str = "generator") -> None:
    """Give a network weights that are finite and compute nothing that is."""
    with torch.no_grad():
        for parameter in getattr(state, network).parameters:
            parameter.fill_(RUNAWAY)


def config_of(run: Path, pictures: Path, **settings: object) -> Config:
    train = {"max_train_steps": 10, "checkpointing_steps": 2, "checkpoints_total_limit": 2, "log_steps": 1}
    data = {"train": str(pictures), "validation": str(pictures), "validation_images": 2}
    return tiny_config(output_dir=run, data=data, train=train | settings)


def run_changed(config: Config, changes: dict[int, Callable[[TrainingState], None]]) -> TrainSummary:
    """A run whose state is changed after some of its updates."""
    call = TrainingStep.__call__

    def called(self: TrainingStep, batches: Iterator[TrainingBatch]) -> None:
        call(self, batches)
        changes.get(self.state.step, lambda state: None)(self.state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", called)
        return train(config)


@pytest.mark.parametrize("step", [5, 6])
def test_run_that_ends_in_a_row_keeps_the_good_checkpoints(
    tmp_path: Path, pictures: Path, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the weights ran away in the very update after which a checkpoint was due, and no row has begun."""
    with pytest.raises(NonFiniteError, match=r"ended after 10 steps, which are not saved, since the last [45] updates "
                       r"were not finite; checkpoint-000004 is kept"):  # fmt: skip
        run_changed(config_of(tmp_path / "run", pictures), {step: run_away})
    assert names(tmp_path / "run") == ["3", "4"]
    printed = capsys.readouterr()
    reason = "the last update was not finite" if step == 5 else "the weights compute values that are not finite"
    assert f"step 6: no checkpoint is saved, since {reason}; checkpoint-000004 is kept" in printed.out + printed.err


def test_resumed_from_the_good_one_it_ends_well(tmp_path: Path, pictures: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError):
        run_changed(config_of(run, pictures), {5: run_away})
    summary = train(config_of(run, pictures, resume_from_checkpoint="latest"))
    assert summary.checkpoint == run / "checkpoint-000010"
    assert summary.unsaved is None
    steps = [line["step"] for line in metrics(run) if "rec" in line]
    assert steps == list(range(1, 11))


def test_run_that_is_stopped_in_a_row_says_what_was_kept(tmp_path: Path, pictures: Path) -> None:
    run = tmp_path / "run"
    changes = {5: run_away, 7: lambda state: os.kill(os.getpid(), signal.SIGTERM)}
    summary = run_changed(config_of(run, pictures), changes)
    assert str(summary) == (
        "Stopped by SIGTERM after 7 steps, which are not saved, since the last 2 updates were not finite; "
        "checkpoint-000004 is kept; go on with --train.resume_from_checkpoint latest"
    )
    assert summary.checkpoint == run / "checkpoint-000004"
    assert names(run) == ["3", "4"]


def test_run_of_nothing_but_a_row_says_that_nothing_was_saved(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(NonFiniteError, match="no checkpoint was saved before"):
        run_changed(config_of(tmp_path / "run", pictures, max_train_steps=4), {1: run_away})
    assert names(tmp_path / "run") == []


def test_best_validation_is_one_of_a_checkpoint(tmp_path: Path, pictures: Path) -> None:
    """One whose state isn't saved is no best one: `export --checkpoint best` would look for it."""
    run = tmp_path / "run"

    def break_discriminator(state: TrainingState) -> None:
        run_away(state, "discriminator")

    config = config_of(run, pictures, validation_steps=1, checkpointing_steps=100, max_train_steps=8)
    with pytest.raises(NonFiniteError):
        run_changed(config, {5: break_discriminator})
    assert 1 <= int(names(run)[-1]) <= 5
