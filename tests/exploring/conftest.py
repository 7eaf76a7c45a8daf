"""A small latent space for all tests here: an autoencoder, pictures, and their latents in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ldm_vae.encoding.encode import encode
from tests.encodings import RESOLUTION, options, save_vae
from tests.pictures import save_pictures

COUNT = 9


@dataclass(frozen=True)
class Space:
    """Where its parts are."""

    vae: str
    photos: str
    latents: str

    @property
    def picture(self) -> str:
        return str(Path(self.photos) / "0003.png")


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    folder = tmp_path_factory.mktemp("space")
    vae, photos = save_vae(folder / "vae"), save_pictures(folder / "photos", count=COUNT)
    encode(options(vae, photos, folder / "latents", resolution=RESOLUTION))
    return Space(vae=vae, photos=photos, latents=str(folder / "latents"))
