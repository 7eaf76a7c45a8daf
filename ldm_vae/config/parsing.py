"""Command lines and config files into dataclasses of settings; every mistake becomes one line."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from ldm_vae.config.documents import Document, read_document, read_record, write_document
from ldm_vae.config.fields import FieldInfo, all_fields, record_fields, sections
from ldm_vae.config.help import help_text
from ldm_vae.config.names import did_you_mean
from ldm_vae.config.recipes import find_recipe, told_recipe
from ldm_vae.config.rules import FieldError, Origin
from ldm_vae.config.run import Config
from ldm_vae.config.stages import check_stage, own_settings
from ldm_vae.config.values import SWITCHES, read_value

Settings = TypeVar("Settings")
_OF_STAGE = re.compile(r"--stages\.(\d+)\.")  # --stages.2.train.learning_rate


@dataclass(frozen=True, kw_only=True)
class Parsed(Generic[Settings]):
    """What a command line says."""

    options: Settings
    """The filled dataclass."""
    origins: dict[str, Origin]
    """Where each value comes from, so that messages name it as the user did."""


@dataclass(kw_only=True)
class _Given:
    """What a file or a command line says of the run, or of one of its stages."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Document) -> _Given:
        return cls(values=document.values, origins=document.origins)


def parse(options: type[Settings], argv: list[str], *, prog: str, positional: tuple[str, ...] = ()) -> Settings:
    """Fill a dataclass from a command line; see `parse_command`."""
    return parse_command(options, argv, prog=prog, positional=positional).options


def parse_command(
    options: type[Settings], argv: list[str], *, prog: str, positional: tuple[str, ...] = ()
) -> Parsed[Settings]:
    """Fill a dataclass from a command line, then from the file of `--config`, then from the defaults.

    Args:
        options: The dataclass. One that holds a run's sections takes `--config` and `--print_config`.
        argv: The words after the command.
        prog: The command, for its help.
        positional: Fields that are given by their place, without a name.

    Raises:
        ValueError: In one line, naming the option, what is wrong, and the nearest valid one.
    """
    if "-h" in argv or "--help" in argv:
        print(help_text(options, prog=prog, positional=positional))
        raise SystemExit(0)
    kind: type = options
    origins = {name: Origin(name if name in positional else f"--{name}") for name in all_fields(kind)}
    origins["config"] = Origin("--config")
    values: dict[str, Any] = {}
    row: list[_Given] = []
    try:
        words = _Words(options, argv, positional=positional)
        for name in words.configs:
            path = find_recipe(name)
            document = read_document(path, Config, where=told_recipe(path))
            origins |= document.origins
            if document.row:
                row = [_Given.of(stage) for stage in document.row]
            else:
                _refuse_shadowed(document.values, row)
            _lay_over(values, document.values)
        origins |= words.of_run.origins
        _refuse_shadowed(words.of_run.values, row)
        _lay_over(values, words.of_run.values)
        _lay_over_stages(row, words.of_stages)
        filled = _with_stages(_fill(options, values), row, values=values, origins=origins)
    except FieldError as error:
        raise ValueError(error.told(origins)) from None
    if words.print_config:
        assert isinstance(filled, Config)
        print(dump_config(filled), end="")
        raise SystemExit(0)
    return Parsed(options=filled, origins=origins)


def load_config(path: Path) -> Config:
    """Read a config file.

    Raises:
        ValueError: In one line, naming the field with the file and line.
    """
    document = read_document(path, Config, where=told_recipe(path))
    row = [_Given.of(stage) for stage in document.row]
    try:
        config = _fill(Config, document.values)
        return _with_stages(config, row, values=document.values, origins=document.origins)
    except FieldError as error:
        raise ValueError(error.told(document.origins)) from None


def dump_config(config: Config) -> str:
    """Return a config as YAML, complete, that `load_config` reads."""
    values = asdict(config)
    values["stages"] = [own_settings(stage, run=config) for stage in config.stages]
    written = [declared.name for declared in fields(Config) if declared.name != "stages" or config.stages]
    return write_document({name: values[name] for name in written})


class _Words:
    """A command line's words, by the fields that they are for."""

    def __init__(self, options: type, argv: list[str], *, positional: tuple[str, ...]) -> None:
        self.configs: list[str] = []
        self.print_config = False
        self.of_run = self._given = _Given()
        self.of_stages: dict[int, _Given] = {}
        self._prefix = "--"  # of the options that `_given` is of
        self._fields = all_fields(options)
        self._options = {f"--{info.alias or name}": info for name, info in self._fields.items()}
        self._takes_config = issubclass(options, Config)
        self._places = deque(positional)
        left = deque(argv)
        while left:
            self._take(left.popleft(), left)

    def _take(self, word: str, left: deque[str]) -> None:
        """Read an option with its values, or what is given by its place."""
        if self._takes_config and (found := _OF_STAGE.match(word)):
            self._given, self._prefix = self.of_stages.setdefault(int(found[1]), _Given()), found[0]
            self._take(f"--{word[found.end() :]}", left)
            self._given, self._prefix = self.of_run, "--"
            return
        option, equals, value = word.partition("=")
        if equals:
            left.appendleft(value)
        if self._takes_config and option == "--config":
            self.configs.append(self._one(option, left, given=bool(equals)))
        elif self._takes_config and word == "--print_config":
            self.print_config = True
        elif (info := self._options.get(option)) is not None:
            self._given.origins[info.name] = Origin(self._prefix + option.removeprefix("--"))
            self._read(info, self._values(info, option, left, given=bool(equals)))
        elif (part := self._part(option)) is not None:
            info, name = part
            value = read_value(self._one(option, left, given=bool(equals)), record_fields(info)[name])
            _lay_over(self._given.values, {info.name: {name: value}})
        elif self._places and not word.startswith("--"):
            if equals:
                left.popleft()
            info = self._fields[self._places[0]]
            if not info.many:  # a list takes all words that are given by their place
                self._places.popleft()
            self._read(info, [word])
        else:
            named = option if self._prefix == "--" else self._prefix + option.removeprefix("--")
            raise ValueError(f"unknown option {named}{self._hint(option)}")

    def _part(self, option: str) -> tuple[FieldInfo, str] | None:
        """Return the field and the part that an option such as `--loss.kl_weight.end` names; None if it names none."""
        whole, _, part = option.rpartition(".")
        info = self._options.get(whole)
        return (info, part) if info and info.record is not None and part in record_fields(info) else None

    def _values(self, info: FieldInfo, option: str, left: deque[str], *, given: bool) -> list[str]:
        """Take the words that belong to an option: those up to the next option for a list, one for any other."""
        if info.type is bool and not given:  # a flag may stand alone
            return [left.popleft()] if left and left[0].lower() in SWITCHES and not self._places else ["true"]
        words = [self._one(option, left, given=given)]
        while info.many and not given and left and not left[0].startswith("--"):
            words.append(left.popleft())
        return words

    def _one(self, option: str, left: deque[str], *, given: bool) -> str:
        if not left or (not given and left[0].startswith("--")):
            raise ValueError(f"{option} needs a value; one that begins with -- is written {option}=VALUE")
        return left.popleft()

    def _read(self, info: FieldInfo, words: list[str]) -> None:
        """Put values into the fields; those of a list that is given again are added."""
        if info.record is not None and words[-1].startswith("{"):
            self._given.values[info.name] = read_record(words[-1], info)
            return
        if not info.many:
            self._given.values[info.name] = read_value(words[-1], info, quoted=words[-1] == "~")
            return
        if info.type is not str:  # [64, 128], or 64,128, or 64 128
            if any(word.startswith("[") for word in words):
                self._given.values.pop(info.name, None)
            words = " ".join(words).replace("[", " ").replace("]", " ").replace(",", " ").split()
        before = self._given.values.get(info.name, [])
        self._given.values[info.name] = before + [read_value(word, info) for word in words]

    def _hint(self, option: str) -> str:
        known = [*self._options, *(["--config", "--print_config"] if self._takes_config else [])]
        same = [name for name in known if name.rpartition(".")[2] == option.removeprefix("--")]
        return f"; did you mean '{same[0]}'?" if same else did_you_mean(option, known)


def _lay_over(values: dict[str, Any], others: dict[str, Any]) -> None:
    """Replace values by others; of a value that has parts, only the parts that are given."""
    for name, value in others.items():
        before = values.get(name)
        values[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value


def _refuse_shadowed(values: dict[str, Any], row: Sequence[_Given]) -> None:
    """Raise where a value for the whole run would count in no stage that has its own, which an earlier file gave."""
    for name in values:
        own = [str(number) for number, stage in enumerate(row, 1) if name in stage.values]
        if own:
            raise FieldError(
                f"<{name}> is given for the whole run, but of its {len(row)} stages {', '.join(own)} "
                f"{'has its' if len(own) == 1 else 'have their'} own; give --stages.{own[0]}.{name}"
            )


def _lay_over_stages(row: Sequence[_Given], others: dict[int, _Given]) -> None:
    """Replace values of stages, by their numbers, by others."""
    for number, given in others.items():
        if not 1 <= number <= len(row):
            (option, *_) = [*given.origins.values(), Origin(f"--stages.{number}")]
            there = (
                f"there are stages 1 to {len(row)}" if row else "the run has no stages; a config file can have them"
            )
            raise FieldError(f"{option.name}: {there}")
        _lay_over(row[number - 1].values, given.values)
        row[number - 1].origins |= given.origins


def _with_stages(
    run: Settings, row: Sequence[_Given], *, values: dict[str, Any], origins: dict[str, Origin]
) -> Settings:
    """Return the run with the settings of each stage: what it has of its own over the run's values."""
    if not row:
        return run
    assert isinstance(run, Config)
    stages = []
    for number, given in enumerate(row, 1):
        of_stage = dict(values)
        _lay_over(of_stage, given.values)
        try:
            stages.append(_fill(Config, of_stage))
            check_stage(stages[-1], run=_fill(Config, values), number=number)
        except FieldError as error:
            told = error.told(origins | given.origins)
            raise ValueError(told if told.startswith("stage ") else f"stage {number}: {told}") from None
    return replace(run, stages=stages)


def _fill(options: type[Settings], values: dict[str, Any]) -> Settings:
    """Make the dataclass, with those nested in it, from values by dotted name."""
    hints = get_type_hints(options)
    section = getattr(options, "section", "")
    arguments: dict[str, Any] = {}
    for declared in fields(options):  # type: ignore[arg-type]
        name = f"{section}.{declared.name}" if section else declared.name
        if is_dataclass(hints[declared.name]):
            arguments[declared.name] = _fill(hints[declared.name], values)
        elif name in values:
            value = values[name]
            record = all_fields(options)[name].record if isinstance(value, dict) else None  # type: ignore[arg-type]
            arguments[declared.name] = value if record is None else _record(record, value, name=name)
        elif declared.default is MISSING and declared.default_factory is MISSING:
            raise FieldError(f"<{name}> is missing: {_purpose(options, name)}")
    return options(**arguments)


def _record(record: type, parts: dict[str, Any], *, name: str) -> Any:
    """Make the dataclass that stands for a value."""
    try:
        return _fill(record, parts)
    except FieldError as error:
        raise FieldError(f"<{name}>: {error}") from None


def _purpose(options: type, name: str) -> str:
    """Return what a field is for: the first sentence of its docstring."""
    doc = next(info.doc for section in sections(options) for info in section.fields if info.name == name)
    return doc.partition(". ")[0].rstrip(".")
