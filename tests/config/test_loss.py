"""Weights of loss terms: a number or a ramp, in YAML and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm_vae.config.loss import Ramp
from ldm_vae.config.parsing import dump_config, load_config, parse
from ldm_vae.config.run import Config
from ldm_vae.training.terms import _weight


def parsed(*words: str) -> Config:
    return parse(Config, list(words), prog="ldm-vae train")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--loss.kl_weight", "1e-5"], 1e-5),
        (["--loss.kl_weight", "{end: 1e-5, to_step: 100}"], Ramp(end=1e-5, to_step=100)),
        (["--loss.kl_weight.end", "1e-5", "--loss.kl_weight.to_step", "100"], Ramp(end=1e-5, to_step=100)),
        (
            ["--loss.kl_weight", "{start: 1, end: 0, from_fraction: 0.5, to_fraction: 1}"],
            Ramp(start=1, end=0, from_fraction=0.5, to_fraction=1),
        ),
    ],
)
def test_a_weight_is_a_number_or_a_ramp(words: list[str], expected: float | Ramp, tmp_path: Path) -> None:
    config = parsed(*words)
    assert config.loss.kl_weight == expected
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("much", "loss.kl_weight is 'much'; it must be a number, or a ramp"),
        ("{ende: 1, to_step: 9}", "ende"),
        ("{end: 1}", "either to_step"),
        ("{end: 1, to_step: 9, to_fraction: 0.5}", "either to_step"),
        ("{end: 1, from_step: 9, to_step: 9}", "forwards"),
        ("{end: 1, to_fraction: 2}", "forwards"),
        ("{end: -1, to_step: 9}", "loss.kl_weight is -1"),
        ("-1", "loss.kl_weight is -1"),
    ],
)
def test_a_wrong_weight_is_told_in_one_line(value: str, told: str) -> None:
    with pytest.raises(ValueError, match=r"loss\.kl_weight|a ramp") as error:
        parsed("--loss.kl_weight", value)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ramp", "steps"),
    [
        ({"to_step": 10}, (0, 10)),
        ({"from_step": 5, "to_step": 10}, (5, 10)),
        ({"from_fraction": 0.1, "to_fraction": 0.5}, (100, 500)),
        ({"to_fraction": 1e-9}, (0, 1)),
    ],
)
def test_fractions_are_of_the_run(ramp: dict[str, Any], steps: tuple[int, int]) -> None:
    schedule = _weight(Ramp(start=2.0, end=4.0, **ramp), max_train_steps=1000)
    assert not isinstance(schedule, float)
    assert (schedule.from_step, schedule.to_step) == steps
    assert [schedule.at(step) for step in (steps[0], steps[1])] == [2.0, 4.0]
