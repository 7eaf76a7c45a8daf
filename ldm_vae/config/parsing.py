"""Dataclasses from YAML files and command lines, through jsonargparse; every mistake becomes one line."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_loader, set_parsing_settings

from ldm_vae.config.names import did_you_mean
from ldm_vae.config.run import Config

Options = TypeVar("Options")

ALIASES = {"--for": "--target"}  # `for` can't be the name of a field

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are booleans, so that `mixed_precision: no` and `compile: off` are words, and
    1e-4 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.\d*([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?|\.(inf|nan))$"),
    list("-+0123456789."),
)
set_loader("ldm_vae", lambda text: yaml.load(text, Loader=_Loader), exceptions=(yaml.YAMLError,))


class _RecipeFile(ActionConfigFile):
    """`--config` by path, or by the name of a shipped recipe."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        path = find_recipe(values)
        try:
            content = yaml.load(path.read_text(), Loader=_Loader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"--config: {path} is no YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ValueError(f"--config: {path} holds no sections; it needs keys such as `model:` and `train:`")
        _check_keys(content, Config, where=str(path))
        super().__call__(parser, namespace, str(path), option_string)


def _check_keys(content: dict[str, Any], section: type, *, where: str, prefix: str = "") -> None:
    """Raise `ValueError` at the first key that isn't a field."""
    sections = get_type_hints(section)
    for key, value in content.items():
        if key not in sections:
            raise ValueError(
                f"{where}: unknown key '{prefix}{key}'{did_you_mean(str(key), sections, otherwise='keys')}"
            )
        if is_dataclass(sections[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: '{prefix}{key}' is a section; it needs keys under it")
            _check_keys(value, sections[key], where=where, prefix=f"{prefix}{key}.")


def recipes_folder() -> Path:
    """Where the shipped recipes are: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_recipe(name: str) -> Path:
    """The path of a config file, or of a shipped recipe by its name.

    Raises:
        ValueError: naming the recipes there are.
    """
    for path in (Path(name), recipes_folder() / name, recipes_folder() / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in recipes_folder().glob("*.yaml"))
    raise ValueError(
        f"--config: there is no file or recipe '{name}'{did_you_mean(Path(name).stem, known, otherwise='recipes')}"
    )


def build_parser(options: type, *, prog: str) -> ArgumentParser:
    """A parser whose options are the dataclass's fields, with their docstrings as help."""
    parser = ArgumentParser(
        prog=prog, description=options.__doc__, exit_on_error=False, default_env=False, parser_mode="ldm_vae"
    )
    if options is Config:
        parser.add_argument("--config", action=_RecipeFile, help="YAML file, or the name of a shipped recipe")
    parser.add_class_arguments(options, as_positional=False)
    return parser


def parse(options: type[Options], argv: list[str], *, prog: str, positional: tuple[str, ...] = ()) -> Options:
    """Fill a dataclass from a command line.

    Raises:
        ValueError: in one line, naming the option, what is wrong, and the nearest valid one.
    """
    parser = build_parser(options, prog=prog)
    try:
        namespace = parser.parse_args(_join_values(_name_positional(argv, positional), parser))
    except (ArgumentError, TypeError) as error:
        raise ValueError(_explain(str(error), parser)) from None
    return _instantiate(options, namespace.as_dict())


def _name_positional(argv: list[str], positional: tuple[str, ...]) -> list[str]:
    """Give the leading words their options' names."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    named = [word for name, value in zip(positional, argv[:count], strict=False) for word in (f"--{name}", value)]
    return named + argv[min(count, len(positional)) :]


def _join_values(argv: list[str], parser: ArgumentParser) -> list[str]:
    """Let a flag stand without `true`, and a list be given as `--vae A --vae B` or `--vae A B`."""
    kinds = {option: str(getattr(a, "_typehint", "")) for a in parser._actions for option in a.option_strings}
    argv = [ALIASES.get(word, word) if ALIASES.get(word) in kinds else word for word in argv]
    joined: list[str] = []
    lists: dict[str, list[str]] = {}
    for position, word in enumerate(argv):
        option = next((w for w in reversed(argv[: position + 1]) if w.startswith("--")), "")
        following = argv[position + 1] if position + 1 < len(argv) else ""
        if "list[" in kinds.get(option, "").lower() and not (word == option and following.startswith("[")):
            if word != option and not word.startswith("["):
                lists.setdefault(option, []).append(word)
            elif word.startswith("["):
                joined.append(word)
        elif "bool" in kinds.get(word, "") and following.lower() not in ("true", "false"):
            joined += [word, "true"]
        else:
            joined.append(word)
    for option, values in lists.items():
        joined += [option, yaml.safe_dump(values, default_flow_style=True, width=float("inf")).strip()]
    return joined


def _instantiate(options: type[Options], values: dict[str, Any]) -> Options:
    types = get_type_hints(options)
    arguments = {}
    for field in fields(options):  # type: ignore[arg-type]
        value = values[field.name]
        kinds = (types[field.name], *get_args(types[field.name]))  # a section, or a value that may be one
        section: Any = next((kind for kind in kinds if is_dataclass(kind)), None)
        arguments[field.name] = _instantiate(section, value) if section and isinstance(value, dict) else value
    return options(**arguments)


def load_config(path: Path) -> Config:
    """Read a config file."""
    return parse(Config, ["--config", str(path)], prog="ldm-vae train")


def dump_config(config: Config) -> str:
    """A config as YAML, complete, that `load_config` reads."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def _explain(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's message as one line that names the nearest valid option or value."""
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        known = [option for action in parser._actions for option in action.option_strings]
        return f"unknown option {match[1]}{did_you_mean(match[1], known)}"
    if match := re.match(r'Parser key "(.+)":\s+Expected an? (.+?)\. Got value: (.*)', message, re.DOTALL):
        key, expected, value = match.groups()
        if "Literal" in expected:
            choices = re.findall(r"'(\w+)'", expected)
            return f"{key} is '{value}'; it must be one of {', '.join(choices)}{did_you_mean(value, choices)}"
        kind = re.sub(r"<class '(.+?)'>", r"\1", expected)
        return f"{key} is '{value}'; it must be a {kind}"
    if match := re.match(
        r'Parser key "(.+?)":\s+Does not validate against any.*Given value: (.*)', message, re.DOTALL
    ):
        key, value = match.groups()
        why = re.search(r"Option '\w+' is not accepted|a ramp .*?(?=\n)", message)
        return (
            f"{key} is '{value}'; it must be a number, or a ramp such as {{start: 0, end: 1, to_step: 1000}}"
            f"{f': {why[0]}' if why else ''}"
        )
    return " ".join(message.split())
