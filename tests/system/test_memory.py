"""What is freed is there for the next step."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

FAULTS_OF_FIVE_STEPS = """
import resource, torch
from ldm_vae.system.memory import keep_freed_memory

keep_freed_memory()

def steps(number):
    for _ in range(number):
        [torch.ones(2**24) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(-steps(8) + steps(5))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_repeated_steps_take_no_new_pages() -> None:
    command = [sys.executable, "-c", FAULTS_OF_FIVE_STEPS]
    faults = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert faults < 5 * 4 * 2**26 / resource.getpagesize() / 50
