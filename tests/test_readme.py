"""The commands of the README and of all documents are ones that the command line takes; the README's files exist."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest

from ldm_vae.cli import COMMANDS
from ldm_vae.config.parsing import parse
from tests.launching import ROOT

README = (ROOT / "README.md").read_text()
DOCUMENTS = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"```bash\n(.*?)```", "\n".join([README, *DOCUMENTS]), re.DOTALL)
CALLS = [
    call.strip()
    for block in BLOCKS
    for line in block.splitlines()
    for call in re.split(r"&&", line)
    if re.search(r"(^| )(ldm-vae|-m ldm_vae) ", call.strip()) and not re.search(r"…|--print_config", call)
]


@pytest.mark.parametrize("call", CALLS)
def test_command_is_understood(call: str) -> None:
    words = shlex.split(re.split(r"(?:ldm-vae|-m ldm_vae) ", call, maxsplit=1)[1])
    called = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
    command = COMMANDS[called]
    module, _, name = command.options.partition(":")
    options = getattr(importlib.import_module(module), name)
    arguments = words[len(called.split()) :]
    assert isinstance(parse(options, arguments, prog="ldm-vae", positional=command.positional), options)


def test_there_are_commands_for_the_main_jobs() -> None:
    used = {re.split(r"(?:ldm-vae|-m ldm_vae) ", call, maxsplit=1)[1].split()[0] for call in CALLS}
    assert {"quickstart", "train", "export", "encode", "decode", "evaluate"} <= used


@pytest.mark.parametrize("recipe", re.findall(r"^\| (`.*?) \|", README, re.MULTILINE))
def test_listed_recipes_exist(recipe: str) -> None:
    for name in re.findall(r"`(\w+)`", recipe):
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name
