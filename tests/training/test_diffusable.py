"""Everything that makes latents worth diffusing on, in real processes: cut, killed and compiled."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from ldm_vae.training.loop import train
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config
from tests.training.changes import Change, SignalInStep, SmoothNetworks
from tests.training.drive import run_together
from tests.training.jobs import ForkedJob, Job
from tests.training.runs import assert_bit_equal, largest_difference, metrics
from tests.vision import save_vision

pytestmark = pytest.mark.processes

STEPS = 8
TOLERANCE = 1e-5
EVERYTHING = {
    "reconstruction": "l2",
    "kl_weight": 1e-3,
    "eq_probability": 0.4,
    "equivariance_weight": 0.5,
    "consistency_weight": 0.05,
    "equivariance_every": 2,
    "equivariance_scales": [0.75, 1.0],
    "equivariance_flips": True,
    "latent_noise": "relative",
    "latent_noise_strength": 0.3,
    "low_pass": [0, 8],
    "spectrum_weight": 0.01,
    "free_bits": 0.3,
    "disc_lecam_weight": 0.1,
    "disc_r1_weight": 0.1,
    "disc_r1_every": 3,
}
LOOKING = {"alignment": "dinov2", "perceptual": "dinov3", "discriminator": "siglip2"}
"""Everything above, and what looks through frozen networks."""
TRAIN = {"batch_size": 8, "adam_epsilon": 1e-4, "checkpointing_steps": 1, "log_steps": 2}
STAGES: list[dict[str, dict[str, Any]]] = [
    {
        "train": {"max_train_steps": 4},
        "loss": {"disc_start": 0.25},
        "data": {"early_resolutions": [16], "early_fractions": [0.3]},
    },
    {"train": {"max_train_steps": 2, "learning_rate": 5e-4}, "loss": {"disc_start": 0, "eq_probability": 0.0}},
    {
        "train": {"max_train_steps": 2, "lr_scheduler": "linear"},
        "loss": {
            "disc_start": 0,
            "latent_noise": "off",
            "consistency_weight": 0.0,
            "spectrum_weight": 0.0,
            "alignment": "none",
        },
        "model": {"decoder_only": True},
    },
]
KILLS = (3, 5, 8)  # in a stage, at the beginning of one, and in the decoder-only one
CUTS = [(1, 8), (1, 2), (2, 4), (2, 1)]


def through_networks(folder: Path) -> dict[str, Any]:
    """The loss of `LOOKING`, with the networks in a folder, which are written there."""
    for name in LOOKING.values():
        save_vision(name, folder / name)
    return EVERYTHING | LOOKING | {f"{use}_weights": str(folder / name) for use, name in LOOKING.items()}


@pytest.fixture(scope="module", params=["own", "frozen"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("diffusable")
    loss = EVERYTHING if request.param == "own" else through_networks(folder / "networks")

    def config_of(run: Path, **train: Any) -> dict[str, Any]:
        data = {"train": str(pictures)}
        return {"output_dir": str(run), "data": data, "loss": loss, "train": TRAIN | train, "stages": STAGES}

    def forked(name: str, *changes: Change, run: str | None = None) -> ForkedJob:
        resume = {"resume_from_checkpoint": "latest"} if run else {}
        config = config_of(folder / (run or name), **resume)
        return ForkedJob(name=name, config=config, changes=(SmoothNetworks(), *changes), num_processes=2)

    kills = [SignalInStep("SIGKILL", rank=1, step=step) for step in KILLS]
    jobs = [forked("whole"), forked("killed", kills[0])]
    jobs += [forked(f"killed-{kill.step}", kill, run="killed") for kill in kills[1:]]
    jobs.append(forked("killed-resumed", run="killed"))
    launched = defaultdict(list)
    for processes, size in CUTS:
        config = config_of(folder / f"{processes}-{size}", micro_batch_size=size)
        launched[processes].append(Job(config=config))
    run_together(folder, launched=launched, forked=jobs)
    return folder


@pytest.mark.parametrize(("processes", "size"), CUTS[1:])
def test_weights_are_those_of_one_process_and_one_batch(runs: Path, processes: int, size: int) -> None:
    assert largest_difference(runs / f"{processes}-{size}", runs / "1-8") < TOLERANCE
    figures = [line for line in metrics(runs / "1-8") if "rec" in line]
    assert len(figures) == STEPS / 2
    assert all(line["equivariance"] > 0 for line in figures)
    assert [line.get("consistency", 0) > 0 for line in figures] == [True, True, True, False]
    assert [line.get("lecam", 0) > 0 for line in figures] == [False, True, True, True]  # D's first update has none
    assert ["r1" in line for line in figures] == [False, True, False, True]  # updates 3 and 6
    if "alignment" in figures[0]:
        assert [line.get("lam_alignment", 0) > 0 for line in figures] == [True, True, True, False]
        kept = runs / "1-8" / "checkpoint-000006"  # of the second stage
        assert load_file(kept / "terms.safetensors").keys() == {"alignment.layer.weight"}
        assert all(name.startswith("heads.") for name in load_file(kept / "discriminator.safetensors"))


def test_a_run_that_was_killed_ends_bit_equal(runs: Path) -> None:
    assert_bit_equal(runs / "killed", runs / "whole")


def test_all_shapes_are_compiled_at_the_start(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a checkpoint. What is compiled for which shape is dynamo's; its machine code, a minute's, is not."""
    compiled: list[int] = []
    rehearse = TrainingStep.rehearse

    def counted(step: TrainingStep, *, resolution: int) -> None:
        rehearse(step, resolution=resolution)
        compiled.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(TrainingStep, "rehearse", counted)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    config = tiny_config(
        output_dir=tmp_path / "run",
        model={"block_out_channels": [4], "norm_num_groups": 1, "mid_block_add_attention": False},
        data={"train": str(pictures), "resolution": 16},
        loss={**EVERYTHING, "disc_weight": 0.0},
        train={"max_train_steps": 8, "compile": "on"},
    )
    torch._dynamo.reset()
    counters.clear()
    train(config)
    assert 0 < counters["stats"]["unique_graphs"] == compiled[-1]
    assert not counters["graph_break"]
