"""One thread a process, one seed a test, and no test of the checkout where the installed package is to be tested."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, here and in what tests start

import numpy as np
import torch

settings.register_profile(
    "the same in every run",
    derandomize=True,
    deadline=None,  # other tests' processes may be at work
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("the same in every run")


def pytest_configure() -> None:
    """Refuse to test a checkout whose path is given as `CHECKOUT`."""
    import ldm_vae

    package, checkout = Path(ldm_vae.__file__).parent, os.environ.get("CHECKOUT")
    if checkout and package.is_relative_to(checkout):
        raise pytest.UsageError(f"{package} would be tested, which is in the checkout, not what is installed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same weights in every run, in any order of tests: fixtures too, since they are made after this."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
