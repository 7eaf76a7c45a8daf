"""One thread a process, one seed a test, and no test of the checkout where the installed package is to be tested."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, here and in what tests start

import numpy as np
import torch

from tests.reporting.browser import Browser, open_browser

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


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; without it the tests that need it are skipped. CI installs it where it can."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with open_browser(chromium) as opened:
        yield opened
