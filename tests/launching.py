"""Starts processes as a user does, of the package that the tests themselves have imported.

No process is started in the checkout, and none gets its path: what they import is the installed package.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.context import ForkServerProcess as Process
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The folder with docs, configs and scripts: the checkout, or a copy of all but the package."""
CHECKOUT = Path(os.environ.get("CHECKOUT", ROOT))
"""The checkout, where the package's source is."""
SCRIPTS = ROOT / "scripts"
SECONDS = 900
"""How long processes are waited for: none that works takes as long, on any machine."""
ENVIRONMENT = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start(command: list[str], *, output: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command of Python's, on the CPU, one thread a process, in the folder of the file that it prints to."""
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=output.parent,
            env=os.environ | ENVIRONMENT | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def forking() -> ForkServerContext:
    """Return what starts processes by forking a server that has the package imported, so that none takes its time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.imported"])
    with contextlib.chdir(ROOT):  # where the server, which may be started here, finds `tests`
        forkserver.ensure_running()
    return context


_reserved: list[socket.socket] = []


def reserve_port() -> int:
    """Return a port for a server to be started, which nobody else is given until this process ends.

    It stays bound here, but nobody listens: who binds it with SO_REUSEADDR, as torch's store does, still can.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    _reserved.append(reserved)
    port: int = reserved.getsockname()[1]
    return port


def start_forked(function: Callable[..., object], *arguments: object, output: Path, **environment: str) -> Process:
    """Call a function in a process of its own, on the CPU and one thread, that prints into a file.

    Args:
        function: One that can be imported by its name.
        arguments: Its arguments, which can be pickled.
        output: The file, in whose folder the process works.
        environment: Variables beside those of this process.
    """
    variables = {**os.environ, **ENVIRONMENT, **environment}
    process = forking().Process(target=_call, args=(function, arguments, variables, output))
    process.start()
    return process


def start_launch(
    num_processes: int, function: Callable[..., object], *arguments: object, output: Path
) -> list[Process]:
    """Call a function in processes that find each other as those of a launch do.

    Each prints into a file of its own: launch.txt's are launch-0.txt, launch-1.txt and so on.
    """
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(reserve_port())}
    return [
        start_forked(
            function,
            *arguments,
            output=output.with_name(f"{output.stem}-{rank}{output.suffix}"),
            **shared,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(num_processes)
    ]


def finish(processes: Sequence[Process], *, folder: Path) -> None:
    """Wait until processes have ended, all of them well; what they printed into the folder is shown otherwise."""
    until = time.monotonic() + SECONDS
    for process in processes:
        process.join(timeout=max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    printed = "\n".join(file.read_text()[-2000:] for file in sorted(folder.glob("*.txt")))
    assert [process.exitcode for process in processes] == [0] * len(processes), printed


def run_launch(function: Callable[..., object], *arguments: object, folder: Path, num_processes: int = 2) -> None:
    """Call a function in the processes of a launch, and wait until they have ended well."""
    finish(start_launch(num_processes, function, *arguments, output=folder / "launch.txt"), folder=folder)


def run_script(script: str, *arguments: str) -> None:
    """Run a script with arguments, as Python does."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def _call(
    function: Callable[..., object], arguments: Sequence[object], environment: dict[str, str], output: Path
) -> None:
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
    os.dup2(1, 2)
    os.chdir(output.parent)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.process._parent_process = None  # for the package it is what a user started, no worker,
    multiprocessing.set_start_method(None, force=True)  # and starts its own workers as such a process does
    function(*arguments)
