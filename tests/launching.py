"""Starts processes as a user does, of the package that the tests themselves have imported.

No process is started in the checkout, and none gets its path: what they import is the installed package.
"""

from __future__ import annotations

import os
import subprocess
import sys
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


def run_with_torchrun(function: str, options: object, *, folder: Path, num_processes: int = 2) -> None:
    """Call `module:function` with options (a dataclass whose repr makes it again) on processes of a launch."""
    module, _, name = function.partition(":")
    options_class = type(options)
    script, printed = folder / f"{name}.py", folder / f"{name}.txt"
    script.write_text(
        f"from {module} import {name}\nfrom {options_class.__module__} import {options_class.__name__}\n"
        f"if __name__ == '__main__':\n    {name}({options!r})\n"
    )
    status = start(torchrun(num_processes, str(script)), output=printed).wait(timeout=120)
    assert status == 0, printed.read_text()[-3000:]
