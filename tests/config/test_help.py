"""`--help` for eyes, the recipes, and completion in a shell."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ldm_vae.config.commands.completion import CompletionOptions, completion
from ldm_vae.config.commands.recipes import RecipesOptions, recipes
from ldm_vae.config.commands.table import COMMANDS
from ldm_vae.config.fields import all_fields
from ldm_vae.config.help import help_text
from ldm_vae.config.recipes import find_recipe, recipe_names
from ldm_vae.config.run import Config


def options_of(name: str) -> type:
    module, _, options = COMMANDS[name].options.partition(":")
    return getattr(importlib.import_module(module), options)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    command = COMMANDS[name]
    text = help_text(options_of(name), prog=f"ldm-vae {name}", positional=command.positional)
    lines = text.splitlines()
    assert lines[0].startswith(f"usage: ldm-vae {name}")
    assert [line for line in lines if line.startswith("usage")] == lines[:1]
    assert max(map(len, lines)) <= 100
    for info in all_fields(options_of(name)).values():
        option = info.name.upper() if info.name in command.positional else f"--{info.alias or info.name}"
        entries = [number for number, line in enumerate(lines) if re.match(rf"  {re.escape(option)}( |$)", line)]
        assert len(entries) == 1, option
        following = " ".join(line.strip() for line in lines[entries[0] + 1 :])
        assert following.startswith(info.doc), option
        told = following[len(info.doc) :][:120]
        if info.range is not None:
            assert f"({info.range.shown}" in told, option
        if info.default is not None and not isinstance(info.default, (bool, list)):
            assert f"default: {info.default}" in told, option


def test_sections_stand_apart_with_what_they_are() -> None:
    lines = help_text(Config, prog="ldm-vae train", positional=()).splitlines()
    places = [lines.index(section) for section in ("data", "model", "loss", "train")]
    assert lines[places[0] - 1] == ""
    first = lines.index("  --output_dir PATH")
    assert first < min(places)
    assert "--train.batch_size N" in "\n".join(lines[places[3] :])


def test_what_is_given_by_its_place_says_how_many_and_which() -> None:
    told = {name: help_text(options_of(name), prog=name, positional=COMMANDS[name].positional).splitlines()
            for name in ("report", "recipes", "completion")}  # fmt: skip
    assert [lines[0] for lines in told.values()] == [
        "usage: report OUTPUTS ... [options]", "usage: recipes [NAME]", "usage: completion SHELL"
    ]  # fmt: skip
    assert "  SHELL bash|zsh|tcsh" in told["completion"]


def test_recipes_are_listed_a_line_each_and_shown() -> None:
    lines = recipes(RecipesOptions()).splitlines()
    assert not any(line.endswith(("- …", "vs.")) for line in lines)  # no word and no title is cut in two
    assert [line.split()[0] for line in lines[: len(recipe_names())]] == recipe_names()
    assert all(20 < len(line) <= 120 for line in lines[: len(recipe_names())])
    assert recipes(RecipesOptions(name="kl_f8")) == find_recipe("kl_f8").read_text(encoding="utf-8").rstrip()
    with pytest.raises(ValueError, match=r"there is no file or recipe 'kl_f9'; did you mean 'kl_f8'\?"):
        recipes(RecipesOptions(name="kl_f9"))


def complete(words: list[str], script: Path) -> list[str]:
    """What bash offers after these words."""
    code = (
        f"source {script}\n"
        f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}\n"
        "$(complete -p ldm-vae | sed -E 's/.*-F ([^ ]+).*/\\1/') ldm-vae; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(completion(CompletionOptions(shell="bash")))
    assert {"train", "latents", "find-batch-size", "recipes"} <= set(complete(["ldm-vae", ""], script))
    assert complete(["ldm-vae", "train", "--loss.perc"], script) == [
        "--loss.perceptual", "--loss.perceptual_weights", "--loss.perceptual_channels", "--loss.perceptual_weight"
    ]  # fmt: skip
    assert "lpips_vgg" in complete(["ldm-vae", "train", "--loss.perceptual", "lp"], script)
    assert complete(["ldm-vae", "train", "--config", "kl_f"], script) == ["kl_f16", "kl_f32", "kl_f4", "kl_f8"]
    assert set(complete(["ldm-vae", "latents", ""], script)) >= {"verify", "export"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script(shell: str) -> None:
    assert "loss.perceptual" in completion(CompletionOptions(shell=shell))  # type: ignore[arg-type]
