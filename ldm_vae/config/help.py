"""`--help`: one usage line, then each section with its fields, what they mean, their defaults and ranges."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

from ldm_vae.config.documents import shown_value
from ldm_vae.config.fields import FieldInfo, Section, sections
from ldm_vae.config.run import Config

_WIDEST = 100
_INDENT = " " * 6
_CONFIG = (
    "Start from a YAML file, or from a recipe by its name (`ldm-vae recipes` lists them). What the command line says "
    "counts more than what the file says."
)


def help_text(options: type, *, prog: str, positional: tuple[str, ...]) -> str:
    """Return what `--help` prints for a command's options.

    Args:
        options: The dataclass of the options.
        prog: The command.
        positional: Fields that are given by their place.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    own, *nested = sections(options)
    by_place = [info for name in positional for info in own.fields if info.name == name]
    required = [info.name for info in own.fields if info.required and info not in by_place]
    usage = [prog, *map(_place, by_place), *(f"--{name} {name.upper()}" for name in required)]
    takes_config = issubclass(options, Config)
    if nested:
        usage.append("[--config FILE] [--SECTION.FIELD VALUE ...]" if takes_config else "[options]")
    elif len(own.fields) > len(positional):
        usage.append("[options]")
    line = f"usage: {' '.join(usage)}"
    lines = [
        *textwrap.wrap(line, width=width, subsequent_indent="  ", break_on_hyphens=False),
        "",
        *_paragraphs(own.doc, width=width),
    ]
    if takes_config:
        lines += _entry("--config FILE|RECIPE", _CONFIG, width)
        lines += _entry("--print_config", "Print the settings that this command line makes, and end.", width)
    lines += _section(own, positional=positional, width=width)
    for section in nested:
        lines += ["", f"{section.name}", *_paragraphs(section.doc, width=width)]
        lines += _section(section, positional=(), width=width)
    return "\n".join(lines)


def _section(section: Section, *, positional: tuple[str, ...], width: int) -> Iterator[str]:
    ordered = sorted(section.fields, key=lambda info: (info.name not in positional, not info.required))
    for info in ordered:
        option = _placed(info) if info.name in positional else f"--{_option(info)}"
        yield from _entry(option, f"{info.doc} {_facts(info)}", width)


def _entry(option: str, text: str, width: int) -> list[str]:
    return ["", f"  {option}", *textwrap.wrap(text, width=width, initial_indent=_INDENT, subsequent_indent=_INDENT)]


def _paragraphs(text: str, *, width: int) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ""
        yield from textwrap.wrap(" ".join(paragraph.split()), width=width)


def _place(info: FieldInfo) -> str:
    """Return how usage shows a field that is given by its place: `VAE`, `[NAME]`, or `PROBES ...` for several."""
    word = info.name.upper() + (" ..." if info.many else "")
    return word if info.required else f"[{word}]"


def _placed(info: FieldInfo) -> str:
    """Return the head of its entry, with its choices: `SHELL bash|zsh|tcsh`."""
    return " ".join([info.name.upper(), "|".join(info.choices) or ("..." if info.many else "")]).rstrip()


def _option(info: FieldInfo) -> str:
    """Return an option with what it takes: `train.batch_size N`; what is off by default takes nothing."""
    if info.type is bool:
        return (info.alias or info.name) + (" true|false" if info.default else "")
    taken = {"local": "PATH", "place": "PATH", "source": "SOURCE"}.get(info.path or "", "") or "|".join(info.choices)
    taken = taken or {int: "N", float: "X", str: "TEXT"}[info.type]
    return f"{info.alias or info.name} {taken}{' ...' if info.many else ''}"


def _facts(info: FieldInfo) -> str:
    """Range and default: "(positive; default: 12)"; a flag that is off and an empty list go without saying."""
    facts = [info.range.shown] if info.range else []
    if info.required:
        facts.append("required")
    elif not (info.default is None or info.default is False or info.default == []):
        facts.append(f"default: {info.default if info.choices else shown_value(info.default)}")
    return f"({'; '.join(facts)})" if facts else ""
