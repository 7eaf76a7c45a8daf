"""The speedrun's plan and arithmetic; its runs are the trainer's own."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ldm_vae.config import Config
from ldm_vae.config_file import parse

SCRIPT = Path(__file__).parents[2] / "scripts" / "speedrun.py"


@pytest.fixture(scope="module")
def speedrun() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speedrun", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["speedrun"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(**fields: object) -> argparse.Namespace:
    defaults = {"output": Path("out"), "train": "photos", "every": 50, "runs": [], "seeds": [0], "equal_time": False}
    return argparse.Namespace(**defaults | fields)


def test_recipes_are_configs_and_differ_where_they_say(speedrun: ModuleType):
    configs = {}
    for recipe in speedrun.RECIPES:
        arguments = speedrun.run_arguments(speedrun.Run(recipe=recipe, updates=7, seed=3), options())
        configs[recipe] = parse(Config, arguments, prog="speedrun")
    published, fast = configs["published"], configs["fast"]
    assert (published.model.init, published.train.optimizer) == ("torch", "adamw")
    assert (fast.model.init, fast.train.optimizer, fast.model.mid_block_add_attention) == ("quiet", "muon", False)
    for config in configs.values():
        assert (config.data, config.loss, config.seed) == (published.data, published.loss, 3)
        assert config.train.max_train_steps == 7
        assert config.train.batch_size == published.train.batch_size


def test_a_run_with_the_gan_starts_from_its_first_part(speedrun: ModuleType):
    start = speedrun.Run(recipe="fast", updates=7, seed=3)
    arguments = speedrun.run_arguments(speedrun.Run(recipe="fast", updates=5, seed=3, start=start), options())
    config = parse(Config, arguments, prog="speedrun")
    assert config.model.pretrained == "out/runs/fast-7-seed3/autoencoder"
    assert config.output_dir == "out/runs/fast-7-seed3-gan-5"
    assert config.loss.disc_weight > 0
    assert config.loss.perceptual == "efficientnet_lite0"


def test_equal_time_gives_each_recipe_the_first_ones_seconds(speedrun: ModuleType):
    chosen = options(runs=["published:400", "fast:400", "fast:350"], seeds=[0, 1], equal_time=True)
    runs = speedrun.parse_runs(chosen, {"published": 0.5, "fast": 0.625})
    assert [(run.recipe, run.updates) for run in runs if run.seed == 1] == [
        ("published", 400),
        ("fast", 400),
        ("fast", 350),
        ("fast", 320),
    ]
    assert len({run.name for run in runs}) == len(runs) == 8


def test_curves_gather_seeds_and_leave_the_gan_out(speedrun: ModuleType):
    def entry(psnr: float, *, gan: bool = False) -> dict[str, object]:
        quality = {"updates": {"100": {"psnr": psnr}, "50": {"psnr": psnr - 1}}}
        return {"recipe": "fast", "updates": 100, "gan": gan, "quality": quality}

    results = {"runs": [entry(20.0), entry(22.0), entry(9.0, gan=True)]}
    assert speedrun.curves(results, "psnr") == {"fast:100": [(50, [19.0, 21.0]), (100, [20.0, 22.0])]}
