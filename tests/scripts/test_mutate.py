"""Every listed mutation can still be made, and the tests that ought to see it are there; none is run."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.launching import CHECKOUT, ROOT, SCRIPTS


@pytest.fixture(scope="module")
def mutate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("mutate")


def test_every_mutation_changes_one_place_into_other_code(mutate: ModuleType) -> None:
    mutations = mutate.read_mutations()
    assert len(mutations) >= 60
    for mutation in mutations:
        text = (CHECKOUT / mutation.file).read_text()
        mutated = mutation.mutated(text)
        assert mutated != text, mutation.name
        if mutation.file.endswith(".py"):  # a report's page has scripts and styles as well
            assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(text)), mutation.name


def test_their_tests_exist(mutate: ModuleType) -> None:
    there: dict[str, set[str]] = {}
    for mutation in mutate.read_mutations():
        assert mutation.tests, mutation.name
        for test in mutation.tests:
            file, _, name = test.partition("::")
            if file not in there:
                tree = ast.parse((ROOT / file).read_text())
                there[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name.partition("[")[0] in there[file], f"{mutation.name}: {test}"


def test_nearly_all_must_be_killed(mutate: ModuleType) -> None:
    """Those that can't be say why in a sentence."""
    mutations = mutate.read_mutations()
    equivalent = [mutation for mutation in mutations if mutation.equivalent is not None]
    assert len(equivalent) <= 0.05 * len(mutations)
    assert all(len(mutation.equivalent.split()) > 5 for mutation in equivalent)


def test_what_does_not_apply_is_named(mutate: ModuleType, tmp_path: Path) -> None:
    mutation = mutate.Mutation(name="wrong-sign", file="a.py", old="x + 1", new="x - 1", tests=["t"])
    assert mutation.mutated("y = x + 1") == "y = x - 1"
    for text, times in (("y = x", 0), ("x + 1 + x + 1", 2)):
        with pytest.raises(
            mutate.MutationError, match=f"^wrong-sign: 'x \\+ 1' stands in a.py {times} times, not once"
        ):
            mutation.mutated(text)
    with pytest.raises(mutate.MutationError, match=r"^there is no mutation nowhere"):
        mutate.choose([mutation], ["nowhere"])
    entry = "{name: a, file: a.py, old: x, new: y, tests: []}"
    (tmp_path / "list.yaml").write_text(f"[{entry}, {entry}]")
    with pytest.raises(mutate.MutationError, match=r"has two mutations of one name: a$"):
        mutate.read_mutations(tmp_path / "list.yaml")
    (tmp_path / "list.yaml").write_text("[{name: a}]")
    with pytest.raises(mutate.MutationError, match="is no list of mutations"):
        mutate.read_mutations(tmp_path / "list.yaml")
