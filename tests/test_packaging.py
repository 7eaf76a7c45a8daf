"""What is installed is whole, is what started processes import, and is described as it is."""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

import ldm_vae
from tests.launching import CHECKOUT, ROOT, start

PACKAGE = Path(ldm_vae.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "PyYAML"}
"""Names of distributions that aren't those of their packages."""


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative path, but for bytecode."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_of_the_package_is_installed() -> None:
    installed, expected = files_of(PACKAGE), files_of(CHECKOUT / "ldm_vae")
    if PACKAGE != CHECKOUT / "ldm_vae":
        expected |= {f"configs/{name}": content for name, content in files_of(CHECKOUT / "configs").items()}
        expected["docs/objective.md"] = (CHECKOUT / "docs" / "objective.md").read_bytes()
    assert installed == expected


@pytest.mark.skipif("CHECKOUT" not in os.environ, reason="in a checkout, the tests import the checkout's package")
@pytest.mark.parametrize("arguments", [["-c", "import ldm_vae; print(ldm_vae.__file__)"], ["script.py"]])
def test_started_processes_import_the_same_package(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import ldm_vae\nprint(ldm_vae.__file__)\n")
    printed = tmp_path / "printed.txt"
    assert start(arguments, output=printed).wait(timeout=300) == 0
    assert printed.read_text().strip() == ldm_vae.__file__


def test_what_is_imported_is_declared() -> None:
    """Every package outside the standard library, optional ones among the extras."""
    extras = PROJECT["optional-dependencies"]
    declared = {
        name_of(line) for line in [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]
    }
    imported = set()
    for path in CHECKOUT.joinpath("ldm_vae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "ldm_vae"}
    assert {name for name in imported if normal(DISTRIBUTIONS.get(name, name)) not in declared} == set()


def name_of(requirement: str) -> str:
    """Return the normalised name of the distribution that a requirement asks for."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return normal(found[0])


def normal(name: str) -> str:
    """Return a distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_this_python_is_one_that_is_declared() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
