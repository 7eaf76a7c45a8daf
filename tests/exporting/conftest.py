"""A run to export, trained once a module, and a stand-in of the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm_vae.config.model import ModelConfig
from tests.exporting.hub_standin import Hub
from tests.exporting.runs import train_run


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub.running() as hub:
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ModelConfig(block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4)
    return train_run(tmp_path_factory.mktemp("trained"), model)
