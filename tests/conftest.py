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
    """Refuse to run on the checkout if `TEST_INSTALLED` is set."""
    import ldm_vae

    package = Path(ldm_vae.__file__).parent
    if os.environ.get("TEST_INSTALLED") and package == Path(__file__).parents[1] / "ldm_vae":
        raise pytest.UsageError(f"TEST_INSTALLED is set, but {package} would be tested, which is the checkout")
