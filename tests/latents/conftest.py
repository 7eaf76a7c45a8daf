"""A folder of latents, and the exact values of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.latents.written import make_plan, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents")
    write(path, make_plan())
    return path


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return write(tmp_path_factory.mktemp("exact"), make_plan())
