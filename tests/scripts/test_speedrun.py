"""The speedrun's plan and arithmetic; its runs are the trainer's own."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ldm_vae.config.parsing import parse
from ldm_vae.config.run import Config
from tests.launching import SCRIPTS


@pytest.fixture(scope="module")
def runs() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("speedrun_runs")


@pytest.fixture(scope="module")
def speedrun(runs: ModuleType) -> ModuleType:
    return importlib.import_module("speedrun")


def options(**fields: object) -> argparse.Namespace:
    defaults = {"output": Path("out"), "train": "photos", "every": 50, "runs": [], "seeds": [0], "equal_time": False}
    return argparse.Namespace(**defaults | fields)


def test_recipes_are_configs_and_differ_where_they_say(runs: ModuleType):
    configs = {}
    for recipe in runs.RECIPES:
        arguments = runs.run_arguments(runs.Run(recipe=recipe, updates=7, seed=3), options())
        configs[recipe] = parse(Config, arguments, prog="speedrun")
    published, fast = configs["published"], configs["fast"]
    assert (published.model.init, published.train.optimizer) == ("torch", "adamw")
    assert (fast.model.init, fast.train.optimizer, fast.model.mid_block_add_attention) == ("quiet", "muon", False)
    for config in configs.values():
        assert (config.data, config.loss, config.seed) == (published.data, published.loss, 3)
        assert config.train.max_train_steps == 7
        assert config.train.batch_size == published.train.batch_size


def test_a_stage_starts_from_the_one_before_and_changes_what_it_names(runs: ModuleType):
    run = runs.parse_run("fast:7,fast+gan+train.ema_decay=0.5:5", seed=3)
    assert [stage.updates for stage in run.stages] == [7, 5]
    config = parse(Config, runs.run_arguments(run, options()), prog="speedrun")
    assert config.model.pretrained == "out/runs/fast-7-seed3/autoencoder"
    assert config.output_dir == "out/runs/fast-7,fast+gan+train.ema_decay=0.5-5-seed3"
    assert config.train.ema_decay == 0.5
    assert config.loss.disc_weight > 0
    assert config.loss.perceptual == "efficientnet_lite0"


@pytest.mark.parametrize("label", ["fast", "fast:", "fast:many", ":5", "fast:5,"])
def test_a_run_without_its_updates_is_refused(runs: ModuleType, label: str):
    with pytest.raises(SystemExit, match=r"--runs: .* is not RECIPE:UPDATES"):
        runs.parse_run(label, seed=0)


def test_equal_time_gives_each_recipe_the_first_ones_seconds(speedrun: ModuleType):
    labels = ["published:400", "fast:400", "fast:350", "fast:400,fast+gan:50"]
    chosen = options(runs=labels, seeds=[0, 1], equal_time=True)
    runs = speedrun.parse_runs(chosen, {"published": 0.5, "fast": 0.625})
    assert [run.label for run in runs if run.seed == 1] == [*labels, "fast:320"]
    assert len({run.name for run in runs}) == len(runs) == 10


@pytest.mark.usefixtures("runs")
def test_curves_gather_seeds_and_go_on_over_stages():
    def stage(recipe: str, psnr: float) -> dict[str, object]:
        quality = {"updates": {"100": {"psnr": psnr}, "50": {"psnr": psnr - 1}}}
        return {"recipe": recipe, "updates": 100, "quality": quality}

    one = [{"run": "fast:100", "stages": [stage("fast", psnr)]} for psnr in (20.0, 22.0)]
    two = [{"run": "fast:100,slow:100", "stages": [stage("fast", 20.0), stage("slow", 24.0)]}]
    results = {"runs": one + two, "seconds_per_update": {"fast": 0.5, "slow": 2.0}}
    report = importlib.import_module("speedrun_report")
    assert report.curves(results, "psnr") == {
        "fast:100": [(50, 25.0, [19.0, 21.0]), (100, 50.0, [20.0, 22.0])],
        "fast:100,slow:100": [(50, 25.0, [19.0]), (100, 50.0, [20.0]), (150, 150.0, [23.0]), (200, 250.0, [24.0])],
    }
