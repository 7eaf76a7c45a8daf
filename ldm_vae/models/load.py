"""Autoencoders loaded from wherever people keep them: diffusers folders, single files, the hub. One reader for all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ldm_vae.config.rules import FieldError, mark, require, within
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.fetching import fetched_autoencoder
from ldm_vae.models.layouts.folder import (
    CONFIG_NAME,
    FolderWeights,
    choose_weights,
    model_folder,
    read_config,
    read_folder,
    require_config,
    shard_names,
)
from ldm_vae.models.layouts.ldm import family_of_weights, read_ldm_weights
from ldm_vae.system.places import is_address
from ldm_vae.system.telling import Note
from ldm_vae.system.text import first_line

HUB_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class LoadedVae:
    """An autoencoder, with notes on how it was read."""

    family: Family
    """The autoencoder, in float32 and in eval mode."""
    source: str
    """The place it came from, as the user named it."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user about what was assumed and what was left out."""
    assumed: dict[str, Any] = field(default_factory=dict)
    """Fields of the config that neither the source nor the user gave, with the published values that were taken."""

    @property
    def model(self) -> DiffusersModel:
        """The diffusers model."""
        return self.family.model


def load_autoencoder(
    source: str | Path,
    *,
    field: str = "vae",
    config: str | Path | None = None,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
) -> DiffusersModel:
    """Load a diffusers autoencoder in float32, in eval mode.

    What had to be assumed, and what was left out, is warned of.

    >>> from ldm_vae import load_autoencoder
    >>> autoencoder = load_autoencoder("export")
    >>> autoencoder.config.latent_channels
    4

    Args:
        source: A diffusers folder (or a pipeline's, with a `vae` subfolder), a single LDM file, the address of either,
            or a hub id.
        field: The option's name, for the error.
        config: A config.json with what a single file doesn't say.
        scaling_factor: What the latents are multiplied by, where the source doesn't say it or says it wrongly.
        shift_factor: What is subtracted from the latents before they are multiplied, likewise.

    Raises:
        FieldError: There is nothing of that name, or it is no autoencoder of a known class.
    """
    return load_vae(
        source, field=field, config=config, scaling_factor=scaling_factor, shift_factor=shift_factor,
        needs_encoder=False,
    ).model  # fmt: skip


def load_vae(
    source: str | Path,
    *,
    field: str = "vae",
    config: str | Path | None = None,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    needs_scaling: bool = True,
    needs_encoder: bool = True,
) -> LoadedVae:
    """Load an autoencoder behind the interface of its family.

    Args:
        source: As in `load_autoencoder`.
        field: The option's name, for the error.
        config: As in `load_autoencoder`.
        scaling_factor: As in `load_autoencoder`.
        shift_factor: As in `load_autoencoder`.
        needs_scaling: Whether the scaling matters, so that a file of which several scalings were published is an
            error unless it is given. Training and reconstruction don't need it.
        needs_encoder: Whether it is to encode, so that one whose encoder isn't trained is an error.

    Raises:
        FieldError: As in `load_autoencoder`, and for want of a scaling or an encoder.
    """
    if is_address(source):
        return _load_from_address(
            str(source), field=field, config=config, scaling_factor=scaling_factor, shift_factor=shift_factor,
            needs_scaling=needs_scaling, needs_encoder=needs_encoder,
        )  # fmt: skip
    path = Path(source).expanduser()
    given = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        if path.is_file():
            stated = read_config(Path(config).expanduser()) if config is not None else {}
            weights = read_ldm_weights(path, config=stated | fields, needs_scaling=needs_scaling)
            loaded = LoadedVae(
                family=family_of_weights(weights),
                source=str(source),
                notes=[f"{path}: {note}" for note in weights.notes],
                assumed=weights.assumed,
            )
        else:
            require(config is None, f"a config is for single files; {source} has its own {CONFIG_NAME}")
            if not path.is_dir():
                path = _download(str(source))
            loaded = _from_folder(read_folder(path), source=str(source), fields=fields)
            unscaled = {"scaling_factor": None, "latents_mean": None}.items() <= loaded.model.config.items()
            require(
                not (needs_scaling and unscaled),
                f"{source}: its {CONFIG_NAME} has no scaling_factor (null); give scaling_factor",
            )
            require(
                loaded.family.has_encoder or not needs_encoder,
                f"{source} only decodes: its encoder isn't trained, as its {CONFIG_NAME} says; encode with the "
                f"autoencoder whose latents it decodes",
            )
    except ValueError as error:
        raise within(mark(field), error) from None
    for note in loaded.notes:
        warnings.warn(note, Note, stacklevel=2)
    return loaded


def _load_from_address(address: str, *, field: str, **options: Any) -> LoadedVae:
    """Load what is fetched from an address; what is told of it names the address."""
    with ExitStack() as stack:
        try:
            path = stack.enter_context(fetched_autoencoder(address))
        except ValueError as error:
            raise within(mark(field), error) from None
        told = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        try:
            loaded = load_vae(path, field=field, **options)
        except FieldError as error:
            raise FieldError(error.message.replace(str(path), address)) from None
    for each in told:
        warnings.warn(str(each.message).replace(str(path), address), each.category, stacklevel=3)
    return replace(loaded, source=address, notes=[note.replace(str(path), address) for note in loaded.notes])


def _from_folder(weights: FolderWeights, *, source: str, fields: Mapping[str, Any]) -> LoadedVae:
    family = weights.family.from_config({**weights.config, **fields}, device="meta")
    foreign = [name for name in fields if name not in family.model.config]
    require(
        not foreign,
        f"{source} holds {family.class_name()}, whose {CONFIG_NAME} has no {', '.join(foreign)}; leave it out",
    )
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.state.items()}
    family.model.load_state_dict(state, assign=True)
    return LoadedVae(family=family.eval(), source=source, notes=weights.notes)


def _download(repository: str) -> Path:
    """Fetch config and weights of a hub repository, or find them in the cache; return the folder that holds them."""
    try:
        files = [file.rfilename for file in HfApi().model_info(repository, timeout=HUB_TIMEOUT_SECONDS).siblings or []]
    except (HfHubHTTPError, HFValidationError) as error:  # there is none of that name, or it is private
        raise ValueError(_unreachable(repository, error)) from None
    except Exception as error:  # no network, in the words of whichever client the hub library uses
        try:
            folder = Path(snapshot_download(repository, local_files_only=True))
            require_config(model_folder(folder))
        except Exception:  # nor in the cache
            raise ValueError(_unreachable(repository, error)) from None
        return folder
    inside = next((inside for inside in ("", "vae/") if f"{inside}{CONFIG_NAME}" in files), None)
    names = [name.removeprefix(inside) for name in files if inside is not None and name.startswith(inside)]
    chosen, _ = choose_weights(names)
    if inside is None or chosen is None:
        raise ValueError(_unreachable(repository, "it holds no autoencoder of diffusers"))
    folder = Path(snapshot_download(repository, allow_patterns=[f"{inside}{name}" for name in (CONFIG_NAME, chosen)]))
    if chosen.endswith(".json"):
        shards = [f"{inside}{name}" for name in shard_names(folder / inside / chosen)]
        snapshot_download(repository, allow_patterns=shards)
    return folder / inside


def _unreachable(repository: str, reason: object) -> str:
    line = first_line(reason)
    return f"'{repository}' is neither a folder or file here nor a model that the hub could give: {line}"
