"""Autoencoders loaded from wherever people keep them: diffusers folders, single files, the hub."""

from __future__ import annotations

import contextlib
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ldm_vae.config.rules import require
from ldm_vae.models.families import FAMILIES, family_class
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.layouts.ldm import read_ldm_file
from ldm_vae.system.text import first_line

HUB_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class LoadedVae:
    """An autoencoder with what is to be said of how it was read."""

    family: Family
    """In float32, in eval mode."""
    source: str
    """Where it came from, as it was named."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user: what was assumed, and what was left out."""

    @property
    def model(self) -> DiffusersModel:
        """The diffusers model."""
        return self.family.model


def load_autoencoder(source: str | Path, *, field: str = "vae") -> DiffusersModel:
    """Load a diffusers autoencoder in float32, in eval mode.

    >>> from ldm_vae import load_autoencoder
    >>> autoencoder = load_autoencoder("export")
    >>> autoencoder.config.latent_channels
    4

    Args:
        source: A diffusers folder (or a pipeline's, with a `vae` subfolder), a single LDM file, or a hub id.
        field: The option's name, for the error.

    Raises:
        ValueError: In one line, where there is no such thing or it is no autoencoder of a class that is known.
    """
    return load_vae(source, field=field).model


def load_vae(source: str | Path, *, field: str = "vae") -> LoadedVae:
    """Load an autoencoder behind the interface of its family. Arguments and errors as in `load_autoencoder`."""
    path = Path(source).expanduser()
    if path.is_file():
        family: Family = read_ldm_file(path)
    elif path.is_dir():
        family = _load_folder(path, field=field)
    else:
        family = _load_from_hub(str(source), field=field)
    return LoadedVae(family=family.eval(), source=str(source))


def _load_from_hub(repository: str, *, field: str) -> Family:
    try:
        files = [file.rfilename for file in HfApi().model_info(repository, timeout=HUB_TIMEOUT_SECONDS).siblings or []]
        offline = False
    except (HfHubHTTPError, HFValidationError) as error:  # there is none of that name, or it is private
        raise ValueError(_unreachable(repository, field, error)) from None
    except Exception as error:  # no network, in the words of whichever client the hub library uses
        files, offline, reason = ["config.json", "vae/config.json"], True, error
    subfolders = [name for name, file in ((None, "config.json"), ("vae", "vae/config.json")) if file in files]
    for subfolder in subfolders:
        for family in FAMILIES.values():
            with contextlib.suppress(OSError, ValueError), warnings.catch_warnings(action="ignore"):
                return family.from_pretrained(
                    repository, subfolder=subfolder, local_files_only=offline, torch_dtype=torch.float32
                )
    raise ValueError(_unreachable(repository, field, reason if offline else f"it holds no {' or '.join(FAMILIES)}"))


def _unreachable(repository: str, field: str, reason: object) -> str:
    line = first_line(reason)
    return f"{field}: '{repository}' is neither a folder or file here nor a model that the hub could give: {line}"


def _load_folder(folder: Path, *, field: str) -> Family:
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    require(
        (folder / "config.json").is_file(),
        f"{field}: {folder} holds no config.json, so it is no diffusers model"
        + ("; it is a run: export it first" if (folder / "config.yaml").is_file() else ""),
    )
    try:
        family = family_class(json.loads((folder / "config.json").read_text()).get("_class_name"))
    except ValueError as error:
        raise ValueError(f"{field}: {folder} holds {error}") from None
    plain = any(any(folder.glob(f"diffusion_pytorch_model{end}")) for end in (".safetensors*", "*.bin"))
    variant = None if plain else "fp16"
    try:
        return family.from_pretrained(folder, variant=variant, torch_dtype=torch.float32)
    except OSError as error:
        raise ValueError(f"{field}: {folder} has no weights that can be read: {first_line(error)}") from None
