"""The documents name tests, files and fields that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.launching import CHECKOUT, ROOT

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TEST = re.compile(r"(?:\b(?P<file>test_\w+)\.py(?:::)?)?(?P<name>\btest_\w+\b(?!\.py))?(?P<cut>…)?")
"""`test_file.py::test_name`, or `…test_name` where the file was named before it; a long name may end with `…`."""
FILE = re.compile(r"`((?:ldm_vae|tests|scripts|configs|docs)/[\w/.-]*\w)`")


def names_by_file() -> dict[str, set[str]]:
    """Return the names of test functions by their file's, without its folder and ending."""
    names: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        names.setdefault(path.stem, set()).update(functions)
    return names


def missing_tests(text: str) -> list[str]:
    """Return the tests that a document names and that there aren't."""
    there = names_by_file()
    missing, file = [], ""
    for found in TEST.finditer(text):
        file = found["file"] or file
        if found["file"] and file not in there:
            missing.append(f"{file}.py")
        name = found["name"]
        if name is None:
            continue
        functions = there.get(file, set())
        if not (any(function.startswith(name) for function in functions) if found["cut"] else name in functions):
            missing.append(f"{file}.py::{name}")
    return missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_tests_exist(document: Path) -> None:
    assert missing_tests(document.read_text()) == []


def test_a_test_that_is_not_there_is_found() -> None:
    here = "`test_docs.py::test_named_tests_exist`, `…test_named_files…`"
    assert missing_tests(here) == []
    assert missing_tests(f"{here}, `…test_of_nothing`, `test_nowhere.py`, `test_docs.py::test_named_tests`") == [
        "test_docs.py::test_of_nothing",
        "test_nowhere.py",
        "test_docs.py::test_named_tests",
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    named = FILE.findall(document.read_text()) + re.findall(r"\btests?/[\w/]+\.py\b", document.read_text())
    assert [name for name in named if not (CHECKOUT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if not link.startswith("https://")]
    folder = CHECKOUT / document.parent.relative_to(ROOT)
    assert [link for link in local if not (folder / link).exists()] == []


def test_the_architecture_names_every_part_of_the_package() -> None:
    """All folders, and the few files beside them but for those that every package has."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"^\| `ldm_vae/([\w.]+)` \|", page, re.MULTILINE))
    package = CHECKOUT / "ldm_vae"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.iterdir() if path.is_file()}
    assert len(files) <= 7
    assert named == folders | files - {"__init__.py", "__main__.py", "py.typed"}


def test_no_file_is_long() -> None:
    folders = (CHECKOUT / "ldm_vae", ROOT / "tests", ROOT / "scripts")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 100
    assert [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 300] == []
