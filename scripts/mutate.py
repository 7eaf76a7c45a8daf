"""Break the package in one place at a time, and see that its tests notice.

    python scripts/mutate.py --jobs 2
    python scripts/mutate.py --only ema-before-the-update kl-not-halved
    python scripts/mutate.py --list

`mutations.yaml` lists the mutations: each replaces a line of the package by a wrong one, and names the tests that
ought to fail for it. Each is made in a copy of the checkout, in which these tests then run. First of all they run once
on an unchanged copy, for a test that fails anyway proves nothing. A mutation that changes nothing that anyone could
see is marked `equivalent`, with the reason; it is made too, and its tests have to pass.

The exit status is 0 where every mutation ends as listed, 1 where one doesn't, 2 where one can't be made or tested.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LISTED = Path(__file__).with_name("mutations.yaml")
COPIED = ("configs", "docs", "ldm_vae", "scripts", "tests", "pyproject.toml", "README.md")
PASSED, FAILED = 0, 1  # pytest's exit statuses; the others say that tests could not be run
LIBRARIES = ["torch", "torchvision", "torchmetrics", "diffusers", "accelerate", "datasets", "lpips", "pytest"]

Verdict = Literal["killed", "survived", "equivalent", "not equivalent", "not tested"]
"""`equivalent`: it survived, and is listed so; `not equivalent`: it is listed so, and was killed."""
AS_LISTED: tuple[Verdict, ...] = ("killed", "equivalent")


class MutationError(ValueError):
    """The list, or a mutation in it, is wrong."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A wrong line in the place of a right one."""

    name: str
    file: str
    """From the checkout's root."""
    old: str
    """Stands in the file exactly once."""
    new: str
    tests: list[str]
    """pytest's names of the tests that ought to fail."""
    equivalent: str | None = None
    """Why no test can fail; None where one must."""

    def mutated(self, text: str) -> str:
        """Return the file's text with the mutation made.

        Raises:
            MutationError: It can't be made, or it would be none.
        """
        times = text.count(self.old)
        if times != 1:
            raise MutationError(f"{self.name}: {self.old!r} stands in {self.file} {times} times, not once")
        if self.old == self.new:
            raise MutationError(f"{self.name}: old and new are the same")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a mutation."""

    mutation: Mutation
    verdict: Verdict
    seconds: float
    detail: str = ""
    """For a verdict that is not as listed: the end of what pytest wrote."""

    def __str__(self) -> str:
        line = f"{self.verdict:14} {self.mutation.name}  ({self.seconds:.0f} s)"
        if self.verdict == "equivalent":
            line += f"\n{'':15}{self.mutation.equivalent}"
        return line + (f"\n{self.detail}" if self.detail else "")


def read_mutations(path: Path = LISTED) -> list[Mutation]:
    """Read the list.

    Raises:
        MutationError: It isn't such a list, or two mutations have one name.
    """
    try:
        mutations = [Mutation(**entry) for entry in yaml.safe_load(path.read_text())]
    except (TypeError, yaml.YAMLError) as error:
        raise MutationError(f"{path} is no list of mutations: {error}") from None
    names = [mutation.name for mutation in mutations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MutationError(f"{path} has two mutations of one name: {', '.join(twice)}")
    return mutations


def choose(mutations: Sequence[Mutation], names: Sequence[str] | None) -> list[Mutation]:
    """Return the mutations of these names, in the list's order; all of them for None.

    Raises:
        MutationError: There is none of a name.
    """
    unknown = [name for name in names or [] if name not in {mutation.name for mutation in mutations}]
    if unknown:
        raise MutationError(f"there is no mutation {', '.join(unknown)}; --list shows them")
    return [mutation for mutation in mutations if names is None or mutation.name in names]


def check_made(mutations: Sequence[Mutation]) -> None:
    """Find out whether all mutations can be made.

    Raises:
        MutationError: Some can't; a line for each.
    """
    faults = []
    for mutation in mutations:
        try:
            mutation.mutated((ROOT / mutation.file).read_text())
        except (MutationError, FileNotFoundError) as error:
            faults.append(str(error))
    if faults:
        raise MutationError("\n".join(faults))


@contextmanager
def copied_checkout() -> Iterator[Path]:
    """Have a copy of what the tests need, which is removed at the end, with all that they wrote."""
    with tempfile.TemporaryDirectory(prefix="mutation-", ignore_cleanup_errors=True) as folder:
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, Path(folder, name))
            else:
                shutil.copy2(ROOT / name, folder)
        yield Path(folder)


def run_tests(
    checkout: Path, tests: Sequence[str], *, timeout: float, to_the_end: bool = False
) -> tuple[int | None, str]:
    """Run tests in a checkout, until the first fails or to the end, in a process of their own.

    The process is forked from a server that has imported the libraries, which takes longer than most tests.

    Returns:
        pytest's exit status, None where the time was up; and what it wrote.
    """
    options = [
        "-q",
        "--durations=0",
        "--durations-min=1e9",
        "--tb=line",
        "--disable-warnings",
        "-p",
        "no:cacheprovider",
    ]
    if not to_the_end:
        options.append("-x")
    output = checkout / "output.txt"
    context = multiprocessing.get_context("forkserver")
    process = context.Process(
        target=_run_pytest, args=([*options, f"--basetemp={checkout / 'temporary'}", *tests], checkout, output)
    )
    process.start()
    process.join(timeout)
    status = process.exitcode
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that the tests started
    process.join()
    return status, output.read_text()


def _run_pytest(arguments: list[str], checkout: Path, output: Path) -> None:
    """Exit with pytest's status."""
    os.setsid()
    os.chdir(checkout)
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.environ["PYTHONPATH"] = str(checkout)  # for the processes that tests start
    sys.path.insert(0, str(checkout))
    assert not [name for name in sys.modules if name.startswith("ldm_vae")], "the package is imported, unchanged"
    status = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(status)


def check_unchanged(mutations: Sequence[Mutation], *, timeout: float) -> None:
    """Run all tests of these mutations on an unchanged copy.

    Raises:
        MutationError: They don't pass.
    """
    with copied_checkout() as checkout:
        tests = sorted({test for mutation in mutations for test in mutation.tests})
        status, written = run_tests(checkout, tests, timeout=timeout, to_the_end=True)
    if status != PASSED:
        reason = "took too long" if status is None else "don't pass"
        raise MutationError(f"the tests {reason} on the unchanged package:\n{_end(written)}")


def run_mutation(mutation: Mutation, *, timeout: float) -> Result:
    """Make a mutation in a copy, and run its tests there."""
    began = time.monotonic()
    with copied_checkout() as checkout:
        file = checkout / mutation.file
        file.write_text(mutation.mutated(file.read_text()))
        status, written = run_tests(checkout, mutation.tests, timeout=timeout)
    verdict: Verdict = "killed" if mutation.equivalent is None else "not equivalent"
    if status == PASSED:
        verdict = "survived" if mutation.equivalent is None else "equivalent"
    elif status not in (FAILED, None):  # None: a test that never ends has noticed too
        verdict = "not tested"
    detail = "" if verdict in AS_LISTED else _end(written)
    return Result(mutation=mutation, verdict=verdict, seconds=time.monotonic() - began, detail=detail)


def summary(results: Sequence[Result]) -> str:
    """Return the numbers of all verdicts, in one line."""
    verdicts = [result.verdict for result in results]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(["killed", "survived", *verdicts])}
    return f"{len(results)} mutations: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def _end(written: str) -> str:
    return "\n".join(f"{'':15}{line}" for line in written.strip().splitlines()[-12:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutations to make; all by default")
    parser.add_argument("--list", action="store_true", help="name the mutations, with what each replaces, and end")
    parser.add_argument("--jobs", type=int, default=1, help="mutations tested at a time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that the tests of one may take")
    parser.add_argument("--skip_unchanged", action="store_true", help="don't run the tests on the unchanged package")
    options = parser.parse_args(arguments)
    try:
        chosen = choose(read_mutations(), options.only)
        check_made(chosen)
        if options.list:
            for mutation in chosen:
                print(f"{mutation.name}  ({mutation.file})\n  - {mutation.old.strip()}\n  + {mutation.new.strip()}")
            return 0
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # killed processes leave semaphores, which it removes
        multiprocessing.set_forkserver_preload(LIBRARIES)
        if not options.skip_unchanged:
            check_unchanged(chosen, timeout=options.timeout * max(1, len(chosen) // 4))
    except MutationError as error:
        print(error, file=sys.stderr)
        return 2
    results = []
    with ThreadPoolExecutor(options.jobs) as threads:
        for result in threads.map(lambda mutation: run_mutation(mutation, timeout=options.timeout), chosen):
            print(result, flush=True)
            results.append(result)
    print(summary(results))
    if any(result.verdict == "not tested" for result in results):
        return 2
    return 0 if all(result.verdict in AS_LISTED for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
