"""Pictures that the runs of this folder's tests train on, and a run with checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae.config.parsing import dump_config
from ldm_vae.training.state import TrainingState
from tests.pictures import picture
from tests.training.checkpoints import CONFIG, save_at, trained


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eleven smooth pictures of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(11):
        picture(index, size=(40 + 3 * index, 48)).save(folder / f"picture-{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def state() -> TrainingState:
    """A state after some updates."""
    return trained()[0]


@pytest.fixture
def run(tmp_path: Path, state: TrainingState) -> Path:
    """A run with checkpoints of steps 1, 2 and 3."""
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    for number in (1, 2, 3):
        save_at(state, tmp_path, number)
    return tmp_path
