"""Settings in YAML: every odd document gives the value that a person meant, or one line with its line number."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from ldm_vae.config.fields import FieldInfo, all_fields
from ldm_vae.config.parsing import dump_config, load_config, parse
from ldm_vae.config.run import Config

TEXTS: list[FieldInfo] = [info for info in all_fields(Config).values() if info.type is str and not info.many]
ODD = [
    "1e-4", "001", "null", "true", "1:30", ":", "#x", " x ", "a\nb", "\t", "- a", "{a}", "[a]", "*a", "&a", "!a", "'",
    '"', "%", "@", "`", "no", "2026-01-01", "<<", "=", "---", "...", "猫", "\u2028", "\x85", "\ufeff", "\x07",
    "\udc80", "\U0010ffff", "a: b", "a #b", "?", "|", ">", "\\", "None", "none", "NULL", "1_000", ".inf",
]  # fmt: skip


def read(text: str, tmp_path: Path) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def texts() -> st.SearchStrategy[str]:
    """Any name that a file can have, and those that YAML reads as something else."""
    drawn = st.text(st.characters(exclude_characters="\0"), min_size=1) | st.sampled_from(ODD)
    return drawn.filter(lambda text: not text.startswith("~"))


def with_texts(value: str) -> Config:
    """A config that says `value` wherever it takes a text."""
    config = Config()
    for info in TEXTS:
        section, _, name = info.name.rpartition(".")
        setattr(getattr(config, section) if section else config, name, value)
    return config


def test_odd_texts_stand_in_some_fields() -> None:
    assert {"output_dir", "data.train", "data.split", "model.pretrained", "loss.perceptual_weights"} <= {
        info.name for info in TEXTS
    }


@given(texts())
@example("null")
@example("~")
@example("\udc80")
def test_every_text_is_read_back_as_it_was(value: str) -> None:
    config = with_texts(value)
    dumped = dump_config(config)
    read_back = _load(dumped)
    for info in TEXTS:
        section, _, name = info.name.rpartition(".")
        written = getattr(getattr(config, section) if section else config, name)
        got = getattr(getattr(read_back, section) if section else read_back, name)
        expected = str(Path.home()) if value == "~" and info.path else written
        assert got == expected, info.name


def _load(text: str) -> Config:
    import tempfile

    with tempfile.NamedTemporaryFile("wb", suffix=".yaml") as file:
        file.write(text.encode())
        file.flush()
        return load_config(Path(file.name))


@given(texts())
@example("1e-4")
@example("--x")
@example("-1")
def test_every_text_on_the_command_line_is_itself(value: str) -> None:
    if value in ("null", "Null", "NULL"):
        assert parse(Config, [f"--data.train={value}"], prog="train").data.train is None
    elif value.lower() == "none":
        with pytest.raises(ValueError, match=f"write null for nothing, or ./{value} for what has that name"):
            parse(Config, [f"--data.train={value}"], prog="train")
    else:
        assert parse(Config, [f"--data.train={value}"], prog="train").data.train == value
        if not value.startswith("--"):
            assert parse(Config, ["--data.train", value], prog="train").data.train == value


def test_a_dump_is_plain_yaml_that_other_readers_understand() -> None:
    config = with_texts("photos/a b: #1")
    dumped = yaml.safe_load(dump_config(config))
    assert dumped["data"]["train"] == dumped["output_dir"] == "photos/a b: #1"
    assert dumped["train"]["batch_size"] == 12
    assert dumped["data"]["early_resolutions"] == []


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("12", 12), ("012", 12), ("0x10", None), ("1_000", 1000), ("1e5", 100000), ("1.5", None), ("12.0", 12),
        ("1:30", None), ("true", None), ("1e400", None), ("9" * 30, None), ("'12'", 12), ("+3", 3), ("\uff11", None),
        ("2026-01-01", None), ("1,000", None), ("[12]", None), ("{a: 1}", None), ("many", None), ("0o14", None),
    ],
)  # fmt: skip
def test_whole_numbers(written: str, value: int | None, tmp_path: Path) -> None:
    text = f"train:\n  max_train_steps: {written}\n"
    if value is not None:
        assert read(text, tmp_path).train.max_train_steps == value
        return
    with pytest.raises(ValueError, match=r"^train\.max_train_steps \(.*config\.yaml, line 2\) is ") as error:
        read(text, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("5.", 5.0), ("1", 1.0), ("1_000.5", 1000.5), ("+1e+2", 100.0),
        ("0.1", 0.1), (".inf", None), ("nan", None), ("1e", None), ("1,5", None), ("1e999", None), ("", None),
        ("~", None),
    ],
)  # fmt: skip
def test_numbers(written: str, value: float | None, tmp_path: Path) -> None:
    text = f"train:\n  learning_rate: {written}\n"
    if value is not None:
        assert read(text, tmp_path).train.learning_rate == value
        return
    with pytest.raises(ValueError, match=r"^train\.learning_rate \(.*config\.yaml, line 2\) (is|has) "):
        read(text, tmp_path)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True),
        ("no", False),
        ("Yes", True),
        ("off", False),
        ("on", True),
        ("1", None),
        ("y", None),
        ("maybe", None),
    ],
)
def test_switches(written: str, value: bool | None, tmp_path: Path) -> None:
    text = f"data:\n  flip: {written}\n"
    if value is not None:
        assert read(text, tmp_path).data.flip is value
        return
    with pytest.raises(ValueError, match=r"line 2\) is '.*'; it must be true or false"):
        read(text, tmp_path)


@pytest.mark.parametrize("written", ["null", "Null", "~", "NULL", "none"])
def test_nothing(written: str, tmp_path: Path) -> None:
    assert read(f"train:\n  checkpoints_total_limit: {written}\n", tmp_path).train.checkpoints_total_limit is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train:\n  log_steps: 4\ndata:\n  flip: true\ntrain:\n  seed: 1", "line 5: 'train' stands in line 1 already"),
        ("train:\n  batch_size: 4\n  batch_size: 4", "line 3: 'train.batch_size' stands in line 2 already"),
        ("seed: 1\nseed: 1", "line 2: 'seed' stands in line 1 already"),
        ("train:\n  batch_size:\n", "train.batch_size (FILE, line 2) has no value; write a value, or"),
        ("train:\n  micro_batch_size:\n", "line 2) has no value; write null for nothing, or leave the line out"),
        ("train:\n  batch_size: null", "line 2) is 'null'; it must be a whole number"),
        ("data:\n  train: ~", "data.train (FILE, line 2) is ~; write null for nothing, or ~/ for the home folder"),
        ("data:\n  train: None", "line 2) is None; write null for nothing, or ./None for what has that name"),
        ("data:\n  split: none", "line 2) is none; write null for nothing, or 'none'"),
        ("data:\n  train: a\n    b", "line 2) goes over several lines; put it into one, or in quotes"),
        ("data:\n  train: [a, b]", "data.train (FILE, line 2) is a list; it takes one value"),
        ("data:\n  early_resolutions: 64", "is '64'; it must be a list, such as [64]"),
        ("data:\n  early_resolutions: [[64]]", "is a list within a list"),
        ("data:\n  early_resolutions: [sixty]", "is 'sixty'; each entry must be a whole number"),
        ("train:\n\tbatch_size: 4", "line 2: this is no YAML:"),
        ("1: 2", "line 1: unknown key '1'"),
        ("? [a]\n: 2", "line 1: a key must be a word"),
        ("seed: 1\n---\nseed: 2", "line 2: this is no YAML: a second document begins here"),
        ("train: &t\n  batch_size: 4\ndata:\n  <<: *t", "line 4: a merge (<<) is not read; write its keys out"),
        ("seed: !!python/object/apply:os.system [ls]", "line 1: the tag tag:yaml.org,2002:python"),
        ("seed: !!int 3", "line 1: the tag"),
        ("batch_size: 4", "line 1: unknown key 'batch_size'; write 'batch_size:' under 'train:'"),
        ("train.batch_size: 4", "line 1: unknown key 'train.batch_size'; write 'batch_size:' under 'train:'"),
        ("train:\n  seed: 4", "line 2: unknown key 'train.seed'; write 'seed:' without a section"),
        ("train:", "line 1: 'train' is a section; it needs keys under it"),
        ("train: {batch_size: 4, batch_size: 5}", "line 1: 'train.batch_size' stands in line 1 already"),
        ("seed: *a", "line 1: this is no YAML: found undefined alias 'a'"),
        ("data:\n  train: \"C:\\photos\"", "line 2: this is no YAML:"),
        ("data:\n  train: a\x07b", "line 2: the character '\\x07' can't stand in YAML"),
        ("[" * 5000, "is nested too deep to be settings"),
        ("", "holds no sections"),
        ("# nothing", "holds no sections"),
        ("just words", "holds no sections"),
    ],
)  # fmt: skip
def test_odd_documents_are_one_line_with_its_number(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message).replace("FILE", ".*config.yaml")) as error:
        read(content, tmp_path)
    assert "\n" not in str(error.value)
    assert "config.yaml" in str(error.value)


def test_an_anchor_gives_its_value_again(tmp_path: Path) -> None:
    config = read("train:\n  log_steps: &every 7\n  validation_steps: *every\n", tmp_path)
    assert (config.train.log_steps, config.train.validation_steps) == (7, 7)


def test_encodings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = "data:\n  train: 写真\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert load_config(path).data.train == "写真"
    path.write_bytes(text.encode("shift-jis"))
    with pytest.raises(ValueError, match=r"config\.yaml, line 2: this is not UTF-8 text"):
        load_config(path)


def test_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"train:\r\n  batch_size: 8\r\n")
    assert load_config(path).train.batch_size == 8


def test_a_value_is_read_by_its_field_not_by_its_look(tmp_path: Path) -> None:
    config = read("output_dir: 1e-4\ndata:\n  train: 001\n  split: 1:30\nloss:\n  adaptive_weight: off\n", tmp_path)
    assert (config.output_dir, config.data.train, config.data.split) == ("1e-4", "001", "1:30")
    assert config.loss.adaptive_weight == "off"
    assert read('data:\n  train: "null"\n', tmp_path).data.train == "null"


def test_a_default_config_is_read_back(tmp_path: Path) -> None:
    assert dataclasses.asdict(read(dump_config(Config()), tmp_path)) == dataclasses.asdict(Config())
