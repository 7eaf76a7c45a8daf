"""Autoencoders at addresses, fetched for as long as it takes to read them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ldm_vae.models.layouts.folder import CONFIG_NAME, choose_weights, shard_names
from ldm_vae.system.places import open_store
from ldm_vae.system.store import Store, StoreError

_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@contextmanager
def fetched_autoencoder(address: str) -> Iterator[Path]:
    """Yield a temporary folder with config and weights of the diffusers model at an address, or the single file there.

    Raises:
        ValueError: There is no autoencoder, or it can't be reached; in one line.
    """
    with tempfile.TemporaryDirectory(prefix="ldm-vae-") as folder:
        try:
            if PurePosixPath(address).suffix.lower() in _FILE_SUFFIXES:
                place, _, name = address.rpartition("/")
                path = Path(folder, name)
                open_store(place).fetch(name, path)
            else:
                path = _fetch_model(open_store(address), Path(folder))
        except StoreError as error:
            raise ValueError(str(error)) from None
        except FileNotFoundError as error:
            raise ValueError(f"{error}; name an export, or a single file") from None
        yield path


def _fetch_model(store: Store, folder: Path) -> Path:
    """Fetch a model's config and weights, or those of a pipeline's `vae`."""
    names = store.names()
    if CONFIG_NAME not in names and store.exists(f"vae/{CONFIG_NAME}"):
        store = open_store(store.place("vae"))
        names = store.names()
    chosen, _ = choose_weights(names)
    if CONFIG_NAME not in names or chosen is None:
        raise ValueError(f"{store.place()} holds no whole autoencoder of diffusers: {CONFIG_NAME} and its weights")
    for name in (CONFIG_NAME, chosen):
        store.fetch(name, folder / name)
    for name in shard_names(folder / chosen) if chosen.endswith(".json") else []:
        store.fetch(name, folder / name)
    return folder
