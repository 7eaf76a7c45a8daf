"""Starts processes as a user does, of the package that the tests themselves have imported.

No process is started in the checkout, and none gets its path: what they import is the installed package.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import is_dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The folder with docs, configs and scripts: the checkout, or a copy of all but the package."""
CHECKOUT = Path(os.environ.get("CHECKOUT", ROOT))
"""The checkout, where the package's source is."""
SCRIPTS = ROOT / "scripts"
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


def torchrun(num_processes: int, *arguments: str) -> list[str]:
    """Return the arguments of a launch on this host, on a port of its own."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}", *arguments]


def forking() -> ForkServerContext:
    """Return what starts processes by forking a server that has the package imported, so that none takes its time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ldm_vae.encoding.encode", "ldm_vae.exporting.export", "ldm_vae.probing.probe"])
    return context


def free_port() -> int:
    """Return the number of a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def run_with_gloo(function: str, options: object, *, folder: Path, num_processes: int = 2) -> None:
    """Call `module:function` with options on processes that find each other as those of a launch do."""
    launch = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    printed = [folder / f"printed-{rank}.txt" for rank in range(num_processes)]
    processes = []
    for rank, file in enumerate(printed):
        environment = ENVIRONMENT | launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(forking().Process(target=_run_rank, args=(function, options, environment, file)))
        processes[-1].start()
    for process, file in zip(processes, printed, strict=True):
        process.join(timeout=120)
        assert process.exitcode == 0, file.read_text()[-3000:]


def _run_rank(function: str, options: object, environment: dict[str, str], printed: Path) -> None:
    import torch

    os.dup2(os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
    os.dup2(1, 2)
    os.environ |= environment
    torch.set_num_threads(1)
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(options)


def run_with_torchrun(function: str, options: object, *, folder: Path, num_processes: int = 2) -> None:
    """Call `module:function` with options (a dataclass whose repr makes it again) on processes of a launch."""
    module, _, name = function.partition(":")
    classes = {type(value) for value in (options, *vars(options).values()) if is_dataclass(value)}
    imports = "".join(f"from {each.__module__} import {each.__name__}\n" for each in classes)
    script, printed = folder / f"{name}.py", folder / f"{name}.txt"
    script.write_text(f"from {module} import {name}\n{imports}if __name__ == '__main__':\n    {name}({options!r})\n")
    status = start(torchrun(num_processes, str(script)), output=printed).wait(timeout=120)
    assert status == 0, printed.read_text()[-3000:]
