from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from PIL import Image

from ldm_vae.system import telling
from tests.pictures import noise


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep `datasets`' cache of one test from the others."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test be told what another was told before."""
    monkeypatch.setattr(telling, "_told", set())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, each different everywhere; 3 and 4 are damaged."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(10):
        Image.fromarray(noise(40, 52, 3, seed=i)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"")
    (folder / "4.png").write_bytes((folder / "5.png").read_bytes()[:1000])
    return folder
