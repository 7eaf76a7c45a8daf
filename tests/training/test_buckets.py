"""Runs whose updates have several shapes, of images of several bands, in real processes: cut, killed and compiled."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from ldm_vae.cli import main
from ldm_vae.config.rules import FieldError
from ldm_vae.training.loop import train
from ldm_vae.training.step import TrainingStep
from tests.pictures import picture, save_pictures
from tests.tiny import LOSS, MODEL, TRAIN, tiny_config
from tests.training.changes import Change, SignalInStep, SmoothNetworks
from tests.training.drive import run_together
from tests.training.jobs import ForkedJob, Job
from tests.training.runs import assert_bit_equal, largest_difference, metrics

STEPS = 6
TOLERANCE = 1e-5
BUCKETS = ["32x32", "48x16", "16x48"]
EVERYTHING = {
    "reconstruction": "l2",
    "kl_weight": 1e-3,
    "perceptual": "efficientnet_lite0",
    "perceptual_channels": [4, 2, 0],
    "eq_probability": 0.4,
    "equivariance_weight": 0.5,
    "equivariance_scales": [0.75, 1.0],
    "equivariance_rotations": [0, 180],
    "spectrum_weight": 0.01,
}
CUTS = [(1, 8), (2, 2)]


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays of five channels in three shapes."""
    folder = tmp_path_factory.mktemp("bands")
    for number, (width, height) in enumerate([(40, 36)] * 5 + [(60, 20)] * 4 + [(20, 70)] * 3):
        planes = [np.asarray(picture(7 * number + band, size=(width, height), mode="L")) for band in range(5)]
        np.save(folder / f"{number:02d}.npy", np.stack(planes).astype(np.float32) / 255)
    return folder


def config_of(run: Path, bands: Path, **train: Any) -> dict[str, Any]:
    return {
        "output_dir": str(run),
        "model": {"in_channels": 5},
        "data": {"train": str(bands), "validation": str(bands), "buckets": BUCKETS, "value_range": [0.0, 1.0]},
        "loss": EVERYTHING,
        "train": {"batch_size": 8, "max_train_steps": STEPS, "adam_epsilon": 1e-4, "checkpointing_steps": 2,
                  "log_steps": 1, **train},
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bands: Path) -> Path:
    folder = tmp_path_factory.mktemp("buckets")

    def forked(name: str, *changes: Change, run: str | None = None) -> ForkedJob:
        resume = {"resume_from_checkpoint": "latest"} if run else {}
        config = config_of(folder / (run or name), bands, **resume)
        return ForkedJob(name=name, config=config, changes=(SmoothNetworks(), *changes), num_processes=2)

    kill = SignalInStep("SIGKILL", rank=1, step=4)
    listed = [forked("whole"), forked("killed", kill), forked("killed-resumed", run="killed")]
    launched = defaultdict(list)
    for processes, size in CUTS:
        config = config_of(folder / f"{processes}-{size}", bands, micro_batch_size=size)
        launched[processes].append(Job(config=config))
    run_together(folder, launched=launched, forked=listed)
    return folder


@pytest.mark.processes
@pytest.mark.parametrize(("processes", "size"), CUTS[1:])
def test_weights_are_those_of_one_process_and_one_batch(runs: Path, processes: int, size: int) -> None:
    assert largest_difference(runs / f"{processes}-{size}", runs / "1-8") < TOLERANCE
    figures = [line for line in metrics(runs / "1-8") if "rec" in line]
    assert len(figures) == STEPS
    assert all(line["perceptual"] > 0 for line in figures)
    assert "48x16" in (runs / "launch-of-1-0.txt").read_text()  # how many images are in each is told


@pytest.mark.processes
def test_a_run_that_was_killed_ends_bit_equal(runs: Path) -> None:
    assert_bit_equal(runs / "killed", runs / "whole")


@pytest.mark.processes
def test_validation_is_that_of_one_process(runs: Path) -> None:
    for one, two in zip(metrics(runs / "1-8"), metrics(runs / "2-2"), strict=True):
        for name, value in one.items():
            if name.startswith("validation/"):
                assert two[name] == pytest.approx(value, rel=1e-4), name


def test_all_shapes_are_compiled_at_the_start(tmp_path: Path, bands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed: list[tuple[Any, int]] = []
    rehearse = TrainingStep.rehearse

    def counted(step: TrainingStep, *, resolution: Any) -> None:
        rehearse(step, resolution=resolution)
        rehearsed.append((resolution, counters["stats"]["unique_graphs"]))

    monkeypatch.setattr(TrainingStep, "rehearse", counted)
    # What is compiled for which shape is dynamo's; the machine code of its graphs, which takes a minute, is not.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    config = tiny_config(
        output_dir=tmp_path / "run",
        model={"block_out_channels": [4], "norm_num_groups": 1, "mid_block_add_attention": False, "in_channels": 5},
        data={"train": str(bands), "buckets": ["16x16", "24x8"], "value_range": [0.0, 1.0]},
        loss={"disc_weight": 0.0},
        train={"max_train_steps": 6, "compile": "on", "checkpointing_steps": 3},
    )
    torch._dynamo.reset()
    counters.clear()
    train(config)
    assert [shape for shape, _ in rehearsed] == [(16, 16), (24, 8)]
    assert 0 < counters["stats"]["unique_graphs"] == rehearsed[-1][1]
    assert not counters["graph_break"]


def test_one_shape_that_is_not_square(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a stream as well; validation and export take the same shape, and the card says so."""
    photos = save_pictures(tmp_path / "photos", count=4, size=(40, 30))
    data = {"train": photos, "validation": photos, "buckets": ["32x16"], "num_workers": 0}
    recipe = tmp_path / "recipe.json"
    settings = {"model": MODEL, "loss": LOSS, "train": TRAIN | {"max_train_steps": 2, "validation_steps": 2}}
    for streaming in (False, True):
        recipe.write_text(json.dumps({"report_to": "none", "data": data | {"streaming": streaming}} | settings))
        main(["train", "--config", str(recipe), "--output_dir", str(tmp_path / f"run-{streaming}")])
    output = tmp_path / "vae"
    main(["export", "--run", str(tmp_path / "run-False"), "--output", str(output), "--num_workers", "0"])
    card = (output / "README.md").read_text()
    assert "cropped to 32x16, in float64" in card
    assert "to the nearest in shape of 32x16" in card


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ({"buckets": ["32"]}, {}, "data.buckets has '32'; write width and height in pixels"),
        ({"buckets": ["32x33"]}, {}, "data.buckets has 32x33, whose sides the model's factor 2 does not divide"),
        ({"buckets": ["32x32", "32x32"]}, {}, "data.buckets has 2 entries; it can have 16 different ones"),
        ({"buckets": ["32x32", "16x32"], "streaming": True}, {}, "data.buckets needs the headers of all images"),
        ({"buckets": ["32x32"], "early_resolutions": [16], "early_fractions": [0.5]}, {}, "are for square crops"),
        (
            {"buckets": ["32x16"]},
            {"eq_probability": 0.5, "equivariance_scales": [1.0]},
            "loss.equivariance_rotations is .90, 180, 270., but images of data.buckets that aren't square",
        ),
    ],
)
def test_buckets_that_cannot_be_are_refused(
    data: dict[str, Any], loss: dict[str, Any], message: str, tmp_path: Path
) -> None:
    photos = save_pictures(tmp_path / "photos", count=1)
    with pytest.raises(FieldError, match=message) as raised:
        train(tiny_config(output_dir=tmp_path / "run", data={"train": photos, **data}, loss=loss))
    assert "\n" not in str(raised.value)
