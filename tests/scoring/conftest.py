"""Pictures to score, and an autoencoder to score them by."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.pictures import noise, picture
from tests.scoring.running import SIDE
from tests.tiny import tiny_autoencoder


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An f2 autoencoder, smooth pictures as normal ones, and both smooth and noisy ones to score."""
    folder = tmp_path_factory.mktemp("scored")
    tiny_autoencoder().save_pretrained(folder / "vae")
    for name, count, first in (("good", 6, 0), ("data/normal", 4, 10), ("data/odd", 3, 20)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = picture(first + i, size=(SIDE, SIDE))
            if name == "data/odd":
                image = Image.fromarray(noise(SIDE, SIDE, 3, seed=i))
            image.save(folder / name / f"{i}.png")
    (folder / "data/odd/broken.png").write_bytes(b"no picture")
    return folder
