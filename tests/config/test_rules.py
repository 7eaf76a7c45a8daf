"""Ranges beside their fields, rules across sections, places that stay what they were, and one notation for errors."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from ldm_vae.cli import COMMANDS
from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.fields import FieldInfo, all_fields
from ldm_vae.config.loss import LossConfig
from ldm_vae.config.parsing import load_config, parse, parse_command
from ldm_vae.config.paths import resolve_paths
from ldm_vae.config.rules import Ends, FieldError, between
from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from tests.tiny import tiny_config


def all_options() -> list[type]:
    names = [command.options.partition(":") for command in COMMANDS.values()]
    return [getattr(importlib.import_module(module), name) for module, _, name in names]


NUMBERS: dict[str, tuple[type, FieldInfo]] = {
    f"{options.__name__}.{info.name}": (options, info)
    for options in all_options()
    for info in all_fields(options).values()
    if info.range is not None
}


def test_most_numbers_have_a_range() -> None:
    numbers = [info for options in all_options() for info in all_fields(options).values() if info.type in (int, float)]
    without = {info.name for info in numbers if info.range is None}
    lists = {"model.attention_levels", "data.early_resolutions", "data.early_fractions", "loss.equivariance_rotations"}
    assert without <= lists | {
        "loss.logvar_init",
        "shift_factor",
        "strength",
        "value_range",
        "data.value_range",
    }  # any number


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_outside_its_range_is_told_by_its_option(name: str) -> None:
    options, info = NUMBERS[name]
    assert info.range is not None
    outside = next(value for value in (-1, 0, 2) if not info.range.within(value))
    required = [f"--{other.name}=x" for other in all_fields(options).values() if other.required and not other.choices]
    required += [f"--{o.name}={o.choices[0]}" for o in all_fields(options).values() if o.required and o.choices]
    with pytest.raises(ValueError, match=rf"^--{info.name} is \[?{outside}(\.0)?\]?; it (must|can't) "):
        parse(options, [*required, f"--{info.name}={outside}"], prog="ldm-vae")


@pytest.mark.parametrize(
    ("ends", "low", "high"), [("[]", True, True), ("(]", False, True), ("[)", True, False), ("()", False, False)]
)
def test_ends_of_a_range_belong_to_it_as_shown(ends: Ends, low: bool, high: bool) -> None:
    range_ = between(1, 2, ends=ends).metadata["range"]
    assert [range_.within(value) for value in (0.99, 1, 1.01, 1.99, 2, 2.01)] == [False, low, True, True, high, False]
    assert range_.shown == f"in {ends[0]}1, 2{ends[1]}"


def test_one_notation_for_what_was_given(tmp_path: Path) -> None:
    with pytest.raises(FieldError) as error:
        TrainConfig(batch_size=0)
    assert str(error.value) == "train.batch_size is 0; it must be positive"
    with pytest.raises(FieldError) as error:
        EncodeOptions(vae="v", data="d", output="o", shard_size=0)
    assert str(error.value) == "shard_size is 0; it must be positive"

    path = tmp_path / "my.yaml"
    path.write_text("seed: 1\ntrain:\n  batch_size: 6\n  micro_batch_size: 4\n")
    with pytest.raises(ValueError, match="batch_size") as told:
        load_config(path)
    assert str(told.value) == (
        f"train.batch_size ({path}, line 3) is 6, which train.micro_batch_size (line 4) 4 does not divide"
    )
    with pytest.raises(ValueError, match="batch_size") as told:
        parse(Config, ["--config", str(path), "--train.micro_batch_size", "5"], prog="train")
    assert str(told.value) == (
        f"train.batch_size ({path}, line 3) is 6, which --train.micro_batch_size 5 does not divide"
    )


def test_what_is_found_later_is_told_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("data:\n  train: nope\n")
    origins = parse_command(Config, ["--config", str(path), "--seed", "3"], prog="train").origins
    error = FieldError("<data.train>: nope is nowhere; see <seed>, <data.split> and <no.field>")
    assert error.told(origins) == (
        f"data.train ({path}, line 2): nope is nowhere; see --seed, --data.split and <no.field>"
    )
    assert str(error) == "data.train: nope is nowhere; see seed, data.split and <no.field>"


def test_names_are_checked_in_python_too() -> None:
    with pytest.raises(ValueError, match=r"loss\.perceptual is 'lpips_vg'; .*; did you mean 'lpips_vgg'\?"):
        LossConfig(perceptual="lpips_vg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"train\.learning_rate is nan; it must be a finite number"):
        TrainConfig(learning_rate=float("nan"))


def test_rules_across_sections_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match=r"train\.best_metric is perceptual, but loss\.perceptual is none"):
        tiny_config(train={"best_metric": "perceptual"})
    tiny_config(train={"best_metric": "perceptual"}, loss={"perceptual": "lpips_vgg"})
    config = tiny_config(loss={"adaptive_weight": "same_step"}, train={"micro_batch_size": 2})
    with pytest.raises(ValueError, match=r"adaptive_weight is same_step, .* makes 2 micro-batches; take lagged"):
        config.check_processes(1)
    config.check_processes(2)
    alone = tiny_config(loss={"adaptive_weight": "same_step", "disc_weight": 0}, train={"micro_batch_size": 2})
    alone.check_processes(1)  # there is no weight to be measured
    with pytest.raises(ValueError, match=r"train\.batch_size is 4, which the 3 processes don't divide"):
        config.check_processes(3)


def test_places_are_absolute_once_resolved_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.parquet").touch()
    monkeypatch.chdir(tmp_path)
    config = tiny_config(
        output_dir="runs/a",
        data={"train": "photos", "validation": "parts/*.parquet"},
        model={"pretrained": "owner/model"},
        loss={"perceptual_weights": "vgg.pth"},
    )
    resolved = resolve_paths(config)
    monkeypatch.chdir("/")
    assert resolved.output_dir == str(tmp_path / "runs" / "a")
    assert resolved.data.train == str(tmp_path / "photos")
    assert resolved.data.validation == str(tmp_path / "parts" / "*.parquet")
    assert resolved.loss.perceptual_weights == str(tmp_path / "vgg.pth")
    assert resolved.model.pretrained == "owner/model"
    assert resolve_paths(resolved) == resolved
    addressed = dataclasses.replace(config, data=dataclasses.replace(config.data, train="s3://bucket/photos"))
    assert resolve_paths(addressed).data.train == "s3://bucket/photos"
    gone = dataclasses.replace(config, data=dataclasses.replace(config.data, train="./gone"))
    assert resolve_paths(gone, base=tmp_path).data.train == str(tmp_path / "gone")


def test_an_address_where_a_folder_must_be_is_told_without_its_words() -> None:
    for value in ("s3://key:secret@bucket/a", "https://host/a"):
        with pytest.raises(ValueError, match=r"^output is an address; it must be a folder or file of this machine$"):
            EvaluateOptions(vae=["vae"], data="photos", output=value)
        with pytest.raises(ValueError, match=r"^output_dir is an address"):
            Config(output_dir=value)
    assert TrainConfig(checkpoint_store="s3://bucket/a").checkpoint_store == "s3://bucket/a"


def test_tilde_is_home_in_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    for options in all_options():
        places = {info.name: info for info in all_fields(options).values() if info.path}
        required = [f"--{i.name}={i.choices[0]}" for i in all_fields(options).values() if i.required and i.choices]
        for left_out in EITHER_OR.get(options.__name__, [None]):
            given = [name for name in places if name != left_out]
            words = [*required, *(f"--{name}=~/x" for name in given), *_needed_beside(options)]
            made = parse(options, words, prog="ldm-vae")
            for name in given:
                section, _, leaf = name.rpartition(".")
                value = getattr(getattr(made, section) if section else made, leaf)
                assert set(value if places[name].many else [value]) == {"/users/me/x"}, name


EITHER_OR = {"ExploreSampleOptions": ["data", "latents"]}
"""Places of which options take only one."""


def _needed_beside(options: type) -> list[str]:
    """What else options need where all places are given, such as latents for each autoencoder of a probe."""
    return {"LatentsVerifyOptions": ["--deep"], "ProbeOptions": ["--latents=~/x"]}.get(options.__name__, [])
