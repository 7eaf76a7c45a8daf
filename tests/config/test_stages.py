"""A run as a row of stages: in files, on the command line, and what stages can't change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldm_vae.config.parsing import dump_config, load_config, parse
from ldm_vae.config.run import Config

ROW = """
model:
  latent_channels: 8
loss:
  kl_weight: 1e-4
  disc_start: 0.5
stages:
  - train:
      max_train_steps: 10
    loss: {latent_noise: additive}
  - train: {max_train_steps: 5}
    loss:
      kl_weight: {start: 0, end: 1, to_step: 4}
    model:
      decoder_only: true
"""


@pytest.fixture
def row(tmp_path: Path) -> Path:
    path = tmp_path / "row.yaml"
    path.write_text(ROW)
    return path


def parsed(path: Path, *words: str) -> Config:
    return parse(Config, ["--config", str(path), *words], prog="train")


def test_each_stage_has_its_own_over_the_runs(row: Path) -> None:
    first, second = parsed(row, "--data.resolution", "64", "--stages.2.train.learning_rate", "1e-3").stages
    assert [stage.train.max_train_steps for stage in (first, second)] == [10, 5]
    assert (first.loss.latent_noise, second.loss.latent_noise) == ("additive", "off")
    assert (first.loss.kl_weight, getattr(second.loss.kl_weight, "to_step", None)) == (1e-4, 4)
    assert [stage.model.latent_channels for stage in (first, second)] == [8, 8]
    assert (first.model.decoder_only, second.model.decoder_only) == (False, True)
    assert [stage.data.resolution for stage in (first, second)] == [64, 64]
    assert (first.train.learning_rate, second.train.learning_rate) == (5.4e-5, 1e-3)
    assert load_config(row).row == [*load_config(row).stages]
    assert len(parse(Config, [], prog="train").row) == 1


def test_a_stage_may_leave_out_the_alignment_of_the_others(row: Path) -> None:
    stages = parsed(row, "--loss.alignment", "dinov2", "--stages.2.loss.alignment", "none").stages
    assert [stage.loss.alignment for stage in stages] == ["dinov2", "none"]


def test_a_row_reads_back_as_it_was_written(row: Path, tmp_path: Path) -> None:
    config = parsed(row, "--stages.1.loss.disc_start", "0.25", "--stages.2.loss.kl_weight.end", "2")
    (tmp_path / "written.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "written.yaml") == config
    assert "stages" not in dump_config(Config())


def test_a_file_after_it_changes_the_run_or_has_another_row(row: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("data: {flip: false}\n")
    assert [stage.data.flip for stage in parsed(row, "--config", str(later)).stages] == [False, False]
    later.write_text("stages:\n- train: {max_train_steps: 3}\n")
    assert [stage.train.max_train_steps for stage in parsed(row, "--config", str(later)).stages] == [3]
    later.write_text("train: {max_train_steps: 3}\n")
    with pytest.raises(ValueError, match=r"later.yaml, line 1\) is given for the whole run, but of its 2 stages 1, 2"):
        parsed(row, "--config", str(later))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--train.max_train_steps 4", "--train.max_train_steps is given for the whole run, but of its 2 stages 1, 2 "
         "have their own; give --stages.1.train.max_train_steps"),
        ("--stages.3.train.max_train_steps 4", "--stages.3.train.max_train_steps: there are stages 1 to 2"),
        ("--stages.1.train.nope 4", "unknown option --stages.1.train.nope"),
        ("--stages.2.model.latent_channels 4", "stage 2 changes --stages.2.model.latent_channels, which all stages of "
         "a run share; give it for the whole run"),
        ("--stages.2.train.batch_size 4", "stage 2 changes --stages.2.train.batch_size, which"),
        ("--stages.2.loss.disc_channels 4", "stage 2 changes --stages.2.loss.disc_channels, which"),
        ("--stages.2.loss.discriminator dinov2", "stage 2 changes --stages.2.loss.discriminator, which"),
        ("--stages.1.loss.alignment dinov2", "stage 1 changes --stages.1.loss.alignment, which"),
        ("--stages.2.data.train x", "stage 2 changes --stages.2.data.train, which"),
        ("--stages.2.seed 1", "stage 2 changes --stages.2.seed, which"),
        ("--stages.1.train.learning_rate=-1", "stage 1: --stages.1.train.learning_rate is -1.0; it must be positive"),
        ("--stages.1.data.resolution 33", "stage 1: --stages.1.data.resolution is 33, which the model's factor 8"),
        ("--stages.2.loss.consistency_weight 1", "stage 2: --stages.2.loss.consistency_weight trains the encoder"),
        ("--loss.disc_start 1.5", "--loss.disc_start is 1.5; it must be a whole number of updates, or a part of"),
    ],
)  # fmt: skip
def test_what_a_stage_cannot_be_is_one_line(row: Path, words: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parsed(row, *words.split())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("stages: 3\n", 1),
        ("stages:\n- 3\n", 2),
        ("stages:\n- train: {max_train_steps: 3}\n- nope: 3\n", 3),
        ("stages:\n- stages:\n  - train: {max_train_steps: 3}\n", 2),
    ],
)
def test_an_odd_row_is_one_line_with_its_number(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"odd\.yaml, line {line}: "):
        load_config(tmp_path / "odd.yaml")


def test_stages_need_a_row() -> None:
    with pytest.raises(ValueError, match="the run has no stages"):
        parse(Config, ["--stages.1.train.max_train_steps", "3"], prog="train")
    with pytest.raises(ValueError, match="stage 1 changes seed"):
        Config(stages=[Config(seed=1)])
