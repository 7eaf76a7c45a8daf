"""What a stage goes on with, what begins anew in it, and which stage a resumed run is in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm_vae.config.loss import Ramp
from ldm_vae.config.run import Config
from ldm_vae.images import batches as batches_module
from ldm_vae.images.training import TrainingBatch, TrainingSample
from ldm_vae.training import opening
from ldm_vae.training.loop import train
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from ldm_vae.training.stages import next_stage
from ldm_vae.training.state import TrainingState
from tests.tiny import tiny_config
from tests.training.checkpoints import plan_of, save_at, trained
from tests.training.runs import metrics

LOSS = {"disc_start": 0, "learn_logvar": True, "disc_lecam_weight": 0.1, "free_bits": 0.2}
ROW: list[dict[str, dict[str, Any]]] = [
    {"train": {"max_train_steps": 4}, "data": {"early_resolutions": [16], "early_fractions": [0.25]}},
    {
        "train": {"max_train_steps": 3, "lr_scheduler": "linear", "learning_rate": 3e-4},
        "data": {"resolution": 48, "early_resolutions": [16], "early_fractions": [0.3]},
        "loss": {"kl_weight": Ramp(start=1e6, end=0.0, to_step=1), "disc_start": 1},
        "model": {"decoder_only": True},
    },
]


def config_of(run: Path, pictures: Path, **fields: Any) -> Config:
    return tiny_config(output_dir=run, data={"train": str(pictures)}, loss=LOSS, stages=ROW, **fields)


def clones(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, list[Any], list[int]]:
    """A run of two stages: its folder, what the second one began with, and the sides of its images."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    begun: list[Any] = []
    sides: list[int] = []
    check, collate = opening.check_ranks_agree, batches_module.collate_training

    def checked(state: TrainingState, **rest: Any) -> None:
        if state.step == state.first_step == 4:
            assert state.discriminator is not None
            assert state.ema is not None
            assert state.objective.lecam is not None
            assert state.objective.rate is not None
            begun.append(
                {
                    "autoencoder": clones(state.autoencoder.state_dict()),
                    "discriminator": clones(state.discriminator.module.state_dict()),
                    "likelihood_logvar": state.trainable.likelihood_logvar.item(),
                    "moments": [len(network.optimizer.state) for network in state.networks],
                    "schedules": [network.lr_scheduler.last_epoch for network in state.networks],
                    "ema_step": state.ema.optimization_step,
                    "ema": [shadow.clone() for shadow in state.ema.shadow_params],
                    "trained": [weight.detach().clone() for weight in state.ema_parameters],
                    "lam": state.lam.item(),
                    "lecam": state.objective.lecam.state.tolist(),
                    "gates": state.objective.rate.gates.tolist(),
                }
            )
        check(state, **rest)

    def watched(samples: list[TrainingSample]) -> TrainingBatch:
        batch = collate(samples)
        sides.append(batch.images.shape[-1])
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "check_ranks_agree", checked)
        patch.setattr("ldm_vae.images.batches.collate_training", watched)
        summary = train(config_of(folder, pictures))
    assert summary.step == 7
    return folder, begun, sides


def test_a_stage_goes_on_with_what_would_be_exported_and_with_d(run: tuple[Path, list[Any], list[int]]) -> None:
    folder, (begun, *_), _ = run
    boundary = folder / "checkpoint-000004"
    average = load_file(boundary / "ema.safetensors")
    raw = load_file(boundary / "autoencoder.safetensors")
    assert all(torch.equal(begun["autoencoder"][name], average[name]) for name in average)
    assert any(not torch.equal(raw[name], average[name]) for name in average)
    assert all(torch.equal(one, other) for one, other in zip(begun["ema"], begun["trained"], strict=True))
    judge = load_file(boundary / "discriminator.safetensors")
    assert all(torch.equal(begun["discriminator"][name], judge[name]) for name in judge)
    scalars = load_file(boundary / "state.safetensors")
    assert begun["likelihood_logvar"] == scalars["likelihood_logvar"].item() != 0
    assert scalars["lam"] > 0
    assert scalars["lecam"][2] == 1


def test_all_else_begins_anew_in_a_stage(run: tuple[Path, list[Any], list[int]]) -> None:
    folder, (begun, *_), sides = run
    assert begun["moments"] == begun["schedules"] == [0, 0]
    assert begun["ema_step"] == begun["lam"] == 0
    assert begun["lecam"] == [0, 0, 0]
    assert begun["gates"] == [1, 1, 1, 1]
    assert sides[:7] == [16, 32, 32, 32, 16, 48, 48]
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [2, 4, 6, 7]
    assert [line["lr"] for line in lines] == pytest.approx([1e-3, 1e-3, 1e-4, 0.0])  # of its own three updates
    assert ["d" in line for line in lines] == [True, True, True, True]
    encoders = [load_file(folder / f"checkpoint-00000{step}" / "ema.safetensors") for step in (4, 7)]
    for name, weight in encoders[0].items():
        assert torch.equal(weight, encoders[1][name]) == name.startswith(("encoder.", "quant_conv."))


def test_early_resolutions_of_a_later_stage_are_counted_from_its_start(pictures: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, pictures)
    ended = save_at(trained(config.stages[0], steps=0)[0], tmp_path, 4, plan=plan_of(config))
    assert next_stage(config, checkpoint=ended).early_stages == [(5, 16)]


def test_ramps_of_a_stage_are_counted_from_its_start(run: tuple[Path, list[Any], list[int]]) -> None:
    """The ramp's high weight shows in the first update of the second stage alone."""
    losses = [(line["loss"], line["rec"]) for line in metrics(run[0])]
    assert [loss > 10 * rec for loss, rec in losses] == [False, False, True, False]


def test_an_export_has_the_settings_of_the_checkpoints_stage(run: tuple[Path, list[Any], list[int]]) -> None:
    for name, resolution in (("checkpoint-000004", 32), ("latest", 48)):
        config = load_run_autoencoder(run[0], checkpoint=name, weights="ema").config
        assert config.data.resolution == resolution


def test_a_stage_that_is_added_goes_on_from_a_finished_run(tmp_path: Path, pictures: Path) -> None:
    one = config_of(tmp_path / "run", pictures)
    assert train(replace(one.stages[0], stages=[])).step == 4
    resumed = replace(one.train, resume_from_checkpoint="latest")
    stages = [replace(stage, train=replace(stage.train, resume_from_checkpoint="latest")) for stage in one.stages]
    assert train(replace(one, train=resumed, stages=stages)).step == 7
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 4, 6, 7]


def test_a_stage_that_has_begun_stays_where_it_began(tmp_path: Path, pictures: Path) -> None:
    config = config_of(tmp_path / "run", pictures)
    state, _ = trained(config.stages[0], steps=0)
    first = next_stage(config, checkpoint=None)
    assert (first.number, first.first_step, first.last_step, first.begins) == (0, 0, 4, True)
    assert first.early_stages == [(1, 16)]
    plan = plan_of(config)
    ended = save_at(state, tmp_path, 4, plan=plan)
    second = next_stage(config, checkpoint=ended)
    assert (second.number, second.first_step, second.last_step, second.begins) == (1, 4, 7, True)
    within = save_at(state, tmp_path, 5, plan=replace(plan, stage=second))
    assert next_stage(config, checkpoint=within) == replace(second, begins=False)

    longer = [replace(stage, train=replace(stage.train, max_train_steps=9)) for stage in config.stages]
    changed = replace(config, stages=longer)
    assert next_stage(changed, checkpoint=ended).number == 0
    kept = next_stage(changed, checkpoint=within)
    assert (kept.number, kept.first_step, kept.last_step) == (1, 4, 13)
    with pytest.raises(ValueError, match="checkpoint-000005 is of stage 2, but the run has 1 now"):
        next_stage(replace(config, stages=longer[:1]), checkpoint=within)


def test_what_a_later_stage_lacks_is_told_before_the_first(tmp_path: Path, pictures: Path) -> None:
    row = [ROW[0], {"loss": {"low_pass": [8]}, "data": {"resolution": 24}}]
    config = tiny_config(output_dir=tmp_path / "run", data={"train": str(pictures)}, stages=row)
    with pytest.raises(ValueError, match=r"^stage 2: loss\.low_pass takes blocks of 8x8"):
        train(config)
    assert not (tmp_path / "run").exists()
