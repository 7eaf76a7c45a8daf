"""One thread a process, and no test of the checkout where the installed package is to be tested."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # other tests' processes may be at work
settings.load_profile("no deadline")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, here and in what tests start


def pytest_configure() -> None:
    """Refuse to test a checkout whose path is given as `CHECKOUT`."""
    import ldm_vae

    package, checkout = Path(ldm_vae.__file__).parent, os.environ.get("CHECKOUT")
    if checkout and package.is_relative_to(checkout):
        raise pytest.UsageError(f"{package} would be tested, which is in the checkout, not what is installed")
