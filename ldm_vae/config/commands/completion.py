"""Options of `ldm-vae completion`, and the parsers that shtab makes completions from."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Literal

from ldm_vae.config.commands.table import COMMANDS, Command
from ldm_vae.config.fields import FieldInfo, all_fields
from ldm_vae.config.recipes import recipe_names
from ldm_vae.config.rules import FieldError, Options
from ldm_vae.config.run import Config


@dataclass(kw_only=True)
class CompletionOptions(Options):
    """Print a script with which a shell completes commands, options and their values.

    Bash takes it by `eval "$(ldm-vae completion bash)"`, zsh from a file `_ldm-vae` in a folder of its `fpath`.
    """

    shell: Literal["bash", "zsh", "tcsh"]
    """The shell."""


def completion(options: CompletionOptions) -> str:
    """Return the script.

    Raises:
        ValueError: The package shtab, which makes it, isn't installed.
    """
    try:
        import shtab
    except ImportError:
        raise FieldError("<shell>: completions are made by shtab: pip install 'ldm-vae[completion]'") from None
    return shtab.complete(_parser(), shell=options.shell)


def _parser() -> argparse.ArgumentParser:
    """All commands in argparse's terms, with what completes each option."""
    parser = argparse.ArgumentParser(prog="ldm-vae", allow_abbrev=False)
    tops = parser.add_subparsers()
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for name, command in COMMANDS.items():
        group, _, leaf = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = tops.add_parser(group, help=f"commands about {group}").add_subparsers()
        place = groups[group] if group else tops
        _add_options(place.add_parser(leaf, help=command.help), command)
    return parser


def _add_options(parser: argparse.ArgumentParser, command: Command) -> None:
    module, _, name = command.options.partition(":")
    options = getattr(importlib.import_module(module), name)
    if issubclass(options, Config):
        parser.add_argument("--config", choices=recipe_names())
        parser.add_argument("--print_config", action="store_true")
    for info in all_fields(options).values():
        _add_option(parser, info, positional=info.name in command.positional)


def _add_option(parser: argparse.ArgumentParser, info: FieldInfo, *, positional: bool) -> None:
    import shtab

    help_text = info.doc.partition(". ")[0].replace("%", "%%")
    choices = info.choices or (("true", "false") if info.type is bool else None)
    name = info.name if positional else f"--{info.alias or info.name}"
    action = parser.add_argument(name, choices=choices, help=help_text)
    if info.path:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
