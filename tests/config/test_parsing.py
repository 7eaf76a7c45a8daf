"""Configuration: recipes that build, words that YAML misreads, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from accelerate import Accelerator

from ldm_vae.cli import COMMANDS
from ldm_vae.config.commands.convert import ConvertOptions
from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.fields import all_fields
from ldm_vae.config.parsing import dump_config, load_config, parse
from ldm_vae.config.recipes import find_recipe, recipes_folder
from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from ldm_vae.models.build import build_autoencoder
from ldm_vae.training.state import build_state
from tests.vision import CLASSES, save_vision

RECIPES = sorted(path.stem for path in recipes_folder().glob("*.yaml"))
STAGES = [(name, stage) for name in RECIPES for stage in range(len(load_config(find_recipe(name)).row))]
PUBLISHED = {
    "kl_f4": (3, 4, []),
    "kl_f8": (4, 8, []),
    "kl_f16": (16, 16, [4]),
    "kl_f32": (64, 32, [4, 5]),
    "flux2_f8c32": (32, 8, []),
    "vq_f8": (4, 8, []),
    "tiny_f8": (4, 8, []),
    "distil_tiny": (4, 8, []),
    "dc_f32": (32, 32, [3, 4, 5]),
    "sdxl": (4, 8, []),
}


def train_config(*arguments: str) -> Config:
    return parse(Config, list(arguments), prog="ldm-vae train")


def test_every_issue_recipe_is_there() -> None:
    assert {"quickstart", "kl_f4", "kl_f8", "kl_f16", "kl_f32", "sd_ft_ema", "sd_ft_mse", "sdxl"} <= set(RECIPES)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_recipe_builds_its_model_and_objective(name: str, stage: int, tmp_path: Path) -> None:
    """At reduced width, with random perceptual weights where the real ones are a download."""
    config = load_config(find_recipe(name)).row[stage]
    assert (recipes_folder() / f"{name}.yaml").read_text().startswith("# ")
    model = dataclasses.replace(
        config.model, block_out_channels=[8] * len(config.model.block_out_channels), norm_num_groups=4
    )
    if model.pretrained is not None:
        build_autoencoder(dataclasses.replace(model, pretrained=None)).model.save_pretrained(tmp_path)
        model = dataclasses.replace(model, pretrained=str(tmp_path))
    loss = config.loss
    if loss.perceptual == "lpips_vgg":
        with torch.device("meta"):
            trunk = torchvision.models.vgg16(weights=None).features.state_dict()
        weights = {f"features.{key}": torch.zeros(weight.shape) for key, weight in trunk.items()}
        torch.save(weights, tmp_path / "vgg.pth")
        loss = dataclasses.replace(loss, perceptual_weights=str(tmp_path / "vgg.pth"))
    for use in ("perceptual", "alignment", "discriminator"):
        if (network := getattr(loss, use)) in CLASSES:
            save_vision(network, tmp_path / network)
            loss = dataclasses.replace(loss, **{f"{use}_weights": str(tmp_path / network)})
    config = dataclasses.replace(config, model=model, loss=loss)
    state = build_state(config, accelerator=Accelerator(cpu=True))
    assert ("perceptual" not in state.objective.frozen_networks) == (loss.perceptual == "none")
    assert (state.discriminator is None) == (loss.disc_weight == 0)
    assert (state.ema is None) == (config.train.ema_decay == 0)
    frozen = {n.split(".")[0] for n, p in state.autoencoder.named_parameters() if not p.requires_grad}
    expected = {"encoder", "quant_conv"} if config.model.decoder_only else set()
    assert frozen == expected | ({"quantize"} if config.model.family == "vq" else set())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architectures(name: str) -> None:
    model = load_config(find_recipe(name)).model
    assert (model.latent_channels, model.spatial_factor, model.attention_levels) == PUBLISHED[name]
    with torch.device("meta"):
        autoencoder = build_autoencoder(model).model
    if name in ("kl_f8", "sdxl"):
        assert sum(p.numel() for p in autoencoder.parameters()) == 83_653_863  # Stable Diffusion's


@pytest.mark.parametrize("word", ["no", "auto", "bf16"])
def test_words_that_yaml_reads_as_booleans(word: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"train:\n  mixed_precision: {word}\n  compile: off\n  learning_rate: 1e-4\n")
    config = load_config(path)
    assert (config.train.mixed_precision, config.train.compile, config.train.learning_rate) == (word, "off", 1e-4)
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_dotted_overrides_come_after_the_file() -> None:
    config = train_config(
        "--config", "kl_f8", "--train.batch_size", "8", "--loss.adaptive_weight", "off", "--seed", "7"
    )
    assert (config.train.batch_size, config.loss.adaptive_weight, config.seed) == (8, "off", 7)
    assert config.train.learning_rate == 1.08e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train:\n  batch_sze: 3", "unknown key 'train.batch_sze'; did you mean 'batch_size'?"),
        ("modle: {}", "unknown key 'modle'; did you mean 'model'?"),
        ("train: 3", "'train' is a section"),
        ("[1, 2", "is no YAML"),
        ("- a", "holds no sections"),
        ("train:\n  batch_size: many", "train.batch_size is 'many'; it must be a whole number"),
        ("loss:\n  perceptual: lpips_vg", "did you mean 'lpips_vgg'?"),
        ("train:\n  batch_size: 0", "train.batch_size is 0; it must be positive"),
        (
            "data:\n  resolution: 100",
            "data.resolution is 100, which the model's factor 8 does not divide; take 96 or 104",
        ),
        (
            "data:\n  early_resolutions: [100]\n  early_fractions: [0.5]",
            "data.early_resolutions is 100, which the model's factor 8 does not divide; take 96 or 104",
        ),
        ("data:\n  early_resolutions: [512]", "they must be positive and smaller than data.resolution, which is 256"),
        ("data:\n  early_resolutions: [64]", "data.early_fractions has 0 entries for 1 data.early_resolutions"),
        (
            "data:\n  early_resolutions: [64, 128]\n  early_fractions: [0.5, 0.5]",
            "data.early_fractions is [0.5, 0.5]; they must be positive, and together less than 1",
        ),
    ],
)
def test_mistakes_in_a_file_are_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml") as error:
        load_config(path)
    assert message in re.sub(r" \([^()]*line \d+\)", "", str(error.value))
    assert "\n" not in str(error.value)


def test_early_stages_are_parts_of_the_run() -> None:
    words = ["--data.early_resolutions", "[64, 128]", "--data.early_fractions", "[0.3, 0.2]"]
    config = parse(Config, [*words, "--train.max_train_steps", "15"], prog="train")
    assert config.early_stages == [(4, 64), (8, 128)]  # updates 0 to 3, and 4 to 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.logsteps", "3"], "unknown option --train.logsteps; did you mean '--train.log_steps'?"),
        (["--config", "kl_f9"], "there is no file or recipe 'kl_f9'; did you mean"),
        (["--train.compile", "onn"], "train.compile is 'onn'; it must be one of auto, on, off; did you mean 'on'?"),
        (["stray"], "unknown option stray"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        train_config(*arguments)
    assert "\n" not in str(error.value)


def test_flags_stand_alone_and_lists_are_repeated_options() -> None:
    options = parse(
        EvaluateOptions,
        ["--vae", "a", "--overwrite", "--data", "d", "--vae", "b", "--output", "o"],
        prog="ldm-vae evaluate",
    )
    assert (options.vae, options.overwrite, options.data) == (["a", "b"], True, "d")
    assert train_config("--overwrite", "--model.block_out_channels", "[32, 64]").model.block_out_channels == [32, 64]
    assert train_config("--overwrite", "false", "--seed", "1").overwrite is False
    options = parse(ConvertOptions, ["in", "out"], prog="ldm-vae convert", positional=("input", "output"))
    assert (options.input, options.output) == ("in", "out")
    assert parse(ExportOptions, ["--run", "r", "--output", "o", "--for", "sd3"], prog="ldm-vae export").target == "sd3"


def test_batch_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match=r"train\.batch_size is 6, which the 4 processes don't divide"):
        TrainConfig(batch_size=6).accumulation(num_processes=4)
    with pytest.raises(ValueError, match=r"train\.micro_batch_size is 4, which does not divide the 6 images"):
        TrainConfig(batch_size=12, micro_batch_size=4).accumulation(num_processes=2)
    assert TrainConfig(batch_size=12, micro_batch_size=3).accumulation(num_processes=2) == (3, 2)
    assert TrainConfig(batch_size=12).accumulation(num_processes=3) == (4, 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_is_explained_in_whole_sentences(name: str) -> None:
    module, _, options = COMMANDS[name].options.partition(":")
    for info in all_fields(getattr(importlib.import_module(module), options)).values():
        assert re.match(r"[A-Z`]|bf16|torch", info.doc), (info.name, info.doc)
        assert info.doc.endswith((".", ".)")), (info.name, info.doc)


def test_a_dumped_config_names_every_field() -> None:
    dumped = yaml.safe_load(dump_config(Config()))
    assert set(dumped["train"]) == {field.name for field in dataclasses.fields(TrainConfig)}
