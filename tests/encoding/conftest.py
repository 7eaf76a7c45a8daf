"""The autoencoder that encodes in this folder's tests."""

from __future__ import annotations

import pytest

from tests.encodings import save_vae


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny AutoencoderKL, which no test changes."""
    return save_vae(tmp_path_factory.mktemp("vae"))
