"""Pictures that the runs of this folder's tests train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pictures import picture


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eleven smooth pictures of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(11):
        picture(index, size=(40 + 3 * index, 48)).save(folder / f"picture-{index:02d}.png")
    return folder
