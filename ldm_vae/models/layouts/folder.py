"""A folder of diffusers, read as a state dict and its config: whichever of its weight files there are."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_vae.models.families import family_class
from ldm_vae.models.families.family import Family
from ldm_vae.models.layouts.ldm_names import fit_shapes, listed, modern_name
from ldm_vae.models.normalisation import SCALING_FIELDS
from ldm_vae.models.weight_files import open_weights

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
MAX_NUMBER = 65_536
"""Widths and channels of a config.json beyond it are taken for damage: nothing is allocated for them."""
MAX_LAYERS = 256
_STEM = "diffusion_pytorch_model"
# Unnamed weights before a variant, safetensors before a pickle, whole files before shards.
_WEIGHTS = [
    re.compile(pattern.format(stem=_STEM))
    for pattern in (
        r"{stem}\.safetensors",
        r"{stem}\.safetensors\.index\.json",
        r"{stem}\.(?P<variant>\w+)\.safetensors",
        r"{stem}\.safetensors\.index\.(?P<variant>\w+)\.json",
        r"{stem}\.bin",
        r"{stem}\.bin\.index\.json",
        r"{stem}\.(?P<variant>\w+)\.bin",
        r"{stem}\.bin\.index\.(?P<variant>\w+)\.json",
    )
]


@dataclass(frozen=True, kw_only=True)
class FolderWeights:
    """An autoencoder out of a diffusers folder, in the stored types."""

    state: dict[str, Tensor]
    config: dict[str, Any]
    family: type[Family]
    notes: list[str] = field(default_factory=list)
    """Lines for the user: which variant was taken, what the file holds beside the weights."""


def model_folder(folder: Path) -> Path:
    """Return the folder itself, or its `vae` where it is a pipeline's."""
    inside = folder / "vae"
    return inside if not (folder / CONFIG_NAME).is_file() and (inside / CONFIG_NAME).is_file() else folder


def read_folder(folder: Path) -> FolderWeights:
    """Read an autoencoder's folder, or a pipeline's with a `vae` subfolder.

    Raises:
        ValueError: There is no config or there are no weights, they don't belong to each other, or they are not
            those of a known class; the message names the file.
    """
    folder = model_folder(folder)
    require_config(folder)
    config = read_config(folder / CONFIG_NAME)
    try:
        family = family_class(config.get("_class_name"))
    except ValueError as error:
        raise ValueError(f"{folder} holds {error}") from None
    names = sorted(path.name for path in folder.iterdir())
    chosen, variant = choose_weights(names)
    if chosen is None:
        raise ValueError(f"{folder} has no weights that can be read: no {WEIGHTS_NAME}, only {listed(names)}")
    state, left_out = _read_weights(folder / chosen)
    try:
        state = checked_state_dict(state, family=family, config=config)
    except ValueError as error:
        raise ValueError(f"{folder / chosen}: {error}") from None
    notes = [f"{folder / chosen} is the {variant} variant; there is none in full precision"] if variant else []
    notes += [f"{folder / chosen}: left out, as it is not part of the model: {listed(left_out)}"] if left_out else []
    return FolderWeights(state=state, config=config, family=family, notes=notes)


def require_config(folder: Path) -> None:
    """Raise `ValueError` unless the folder holds a config.json."""
    if not (folder / CONFIG_NAME).is_file():
        run = "; it is a run: export it first" if (folder / "config.yaml").is_file() else ""
        raise ValueError(f"{folder} holds no {CONFIG_NAME}, so it is no diffusers model{run}")


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json.

    Raises:
        ValueError: There is none, it isn't JSON, or a number in it is absurd.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no fields, but a {type(config).__name__}")
    try:
        check_numbers(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def check_numbers(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for widths, channels and counts that no model has, before anything is built of them.

    The same for what latents can't be scaled by.
    """
    for name in SCALING_FIELDS:
        _check_scaling(name, config.get(name))
    for name, value in config.items():
        limit = MAX_LAYERS if "layers" in name else MAX_NUMBER
        values = value if isinstance(value, list) else [value]
        if name != "latents_mean" and any(type(number) is int and not 0 <= number <= limit for number in values):
            raise ValueError(f"{name} is {str(value)[:60]}; it can't be below 0 or above {limit}")
        if len(values) > MAX_NUMBER:
            raise ValueError(f"{name} has {len(values)} values")


def _check_scaling(name: str, value: Any) -> None:
    divides = name in ("scaling_factor", "latents_std")
    for number in value if isinstance(value, list) else [value] if value is not None else []:
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        if not is_number or (divides and number <= 0):
            kind = "positive number" if divides else "finite number"
            raise ValueError(f"{name} is {str(value)[:60]}; it must be a {kind}")


def checked_state_dict(
    state: Mapping[str, Tensor], *, family: type[Family], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Check a state dict against its config, and give attention its new names (`to_q`, not `query`).

    Raises:
        ValueError: Lists what is missing, extra or of the wrong shape.
    """
    try:
        model = family.from_config(config, device="meta").model
    except Exception as error:  # diffusers checks little: wrong values end in any exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"its {CONFIG_NAME} makes no {family.class_name()}: {reason}") from None
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return fit_shapes({modern_name(name): tensor for name, tensor in state.items()}, shapes=shapes)


def choose_weights(names: Iterable[str]) -> tuple[str | None, str | None]:
    """Return the weight file (or index of shards) to read out of a folder's names, and the variant that it is."""
    names = sorted(names)
    for pattern in _WEIGHTS:
        for name in names:
            if found := pattern.fullmatch(name):
                return name, found.groupdict().get("variant")
    return None, None


def shard_names(index: Path) -> list[str]:
    """Return the names of the shards that an index lists, which lie beside it.

    Raises:
        ValueError: It is no index, or names something outside its folder.
    """
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of shards; fetch it again") from None
    for name in files:
        if not isinstance(name, str) or name != Path(name).name:
            raise ValueError(f"{index} names {str(name)!r}, which is no file beside it")
    return files


def _read_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    files = [path.parent / name for name in shard_names(path)] if path.suffix == ".json" else [path]
    state: dict[str, Tensor] = {}
    left_out: list[str] = []
    for file in map(open_weights, files):
        state |= file.load(file.names)
        left_out += file.left_out
    return state, left_out
