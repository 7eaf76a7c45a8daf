"""The command line: which command is meant, its options, and how a mistake or an end is told."""

from __future__ import annotations

import codecs
import importlib
import io
import os
import sys
from collections.abc import Iterable
from typing import NoReturn

from ldm_vae import __version__
from ldm_vae.config.commands.table import COMMANDS, Command


def main(argv: list[str] | None = None) -> None:
    """Run a command; exit with 0 where all went well, 1 where it didn't, 2 for what was typed wrong."""
    arguments = sys.argv[1:] if argv is None else argv
    _print_utf8()
    try:
        try:
            _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        raise SystemExit(1) from None


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"ldm-vae {__version__}")
        raise SystemExit(0)
    name = next((name for name in COMMANDS if arguments[: len(name.split())] == name.split()), None)
    if name is None:
        _tell_group(arguments)
        _fail(f"unknown command '{arguments[0]}'{_nearest_command(arguments[0])}", status=2)
    _run(COMMANDS[name], arguments[len(name.split()) :], prog=f"ldm-vae {name}")


def _run(command: Command, arguments: list[str], *, prog: str) -> None:
    from ldm_vae.config.parsing import parse_command
    from ldm_vae.config.rules import NamesFields
    from ldm_vae.system.telling import show_notes_as_lines

    try:
        parsed = parse_command(_resolve(command.options), arguments, prog=prog, positional=command.positional)
    except ValueError as error:
        _fail(str(error), status=2)
    show_notes_as_lines()
    try:
        summary = _resolve(command.function)(parsed.options)
    except (ValueError, OSError, RuntimeError) as error:
        ours = not isinstance(error, RuntimeError) or type(error).__module__.startswith("ldm_vae")
        if os.environ.get("LDM_VAE_TRACEBACK") or not ours:
            raise
        _fail(error.told(parsed.origins) if isinstance(error, NamesFields) else str(error), status=1)
    if os.environ.get("RANK", "0") == "0":
        print(summary)
    if problem := getattr(summary, "problem", None):  # what was done is on the disk, but not all went well
        _fail(problem, status=1)


def _print_utf8() -> None:
    """Have names of any script printed where the locale knows ASCII alone, as in bare containers."""
    if codecs.lookup(sys.stdout.encoding or "utf-8").name == "ascii" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _resolve(name: str):  # type: ignore[no-untyped-def]
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _fail(message: str, *, status: int) -> NoReturn:
    from ldm_vae.system.text import printable

    rank = os.environ.get("RANK", "0")
    who = "ldm-vae" if rank == "0" else f"ldm-vae (process {rank})"
    print(f"{who}: {printable(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(status)


def _tell_group(arguments: list[str]) -> None:
    """End with the commands that begin with a word, such as `explore`, if there are any."""
    word, *others = arguments
    names = [name for name in COMMANDS if name.startswith(f"{word} ")]
    if not names:
        return
    if any(help in others for help in ("-h", "--help")):
        print("\n".join(_listed(names)))
        raise SystemExit(0)
    from ldm_vae.config.names import nearest

    named = f"unknown command '{word} {others[0]}'" if others else f"'{word}' is no command by itself"
    close = nearest(" ".join(arguments[:2]), names) if others else None
    _fail(f"{named}; " + (f"did you mean '{close}'?" if close else f"there are {', '.join(names)}"), status=2)


def _listed(names: Iterable[str]) -> list[str]:
    width = max(map(len, COMMANDS))
    return [f"  {name:<{width}}  {COMMANDS[name].help}" for name in names]


def _nearest_command(word: str) -> str:
    from ldm_vae.config.names import did_you_mean

    return did_you_mean(word, COMMANDS, otherwise="commands")


def _usage() -> str:
    return "\n".join(
        [
            "usage: ldm-vae COMMAND [options]",
            "",
            "Train, export and use the autoencoders that latent diffusion runs on.",
            "",
            *_listed(COMMANDS),
            "",
            "`ldm-vae quickstart` runs the whole way once, on photographs that need no download.",
            "`ldm-vae COMMAND --help` explains a command's options.",
            "LDM_VAE_TRACEBACK=1 in the environment shows where an error came from.",
        ]
    )
