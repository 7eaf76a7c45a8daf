"""The LDM layout of a KL or VQ autoencoder, as state dicts: `down.0.block.1`, `mid.attn_1`, `up.3.attn.0`.

Both layouts hold the same tensors under other names, apart from attention, whose projections are linear [c, c] in
diffusers and 1x1 convolutions [c, c, 1, 1] in LDM. The names follow from the config alone, so one table, made from
diffusers' own model, serves both directions and says what is missing, extra or of the wrong shape.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_vae.config.names import did_you_mean
from ldm_vae.config.rules import FieldError, mark, within
from ldm_vae.models.families.kl import KL
from ldm_vae.models.families.vq import VQ
from ldm_vae.models.layouts.folder import check_numbers, checked_state_dict
from ldm_vae.models.layouts.ldm_config import CODEBOOK, class_of, infer_config
from ldm_vae.models.layouts.ldm_names import (
    MID_ATTENTION,
    canonical_names,
    fit_shapes,
    inert_attention,
    ldm_name,
    ldm_shape,
    listed,
)
from ldm_vae.models.weight_files import WeightFile, looks_like, open_weights

CONFIG_METADATA = "ldm_vae.config"
"""Key of the safetensors metadata that holds config.json in our LDM files."""

_PREFIXES = ("first_stage_model.", "vae.", "")
_TRAINING_LEFTOVERS = ("loss.", "model_ema.")

# What the layout can't say. A bare file gets the values published with kl-f8; a full checkpoint, its family's.
_PUBLISHED = {"act_fn": "silu", "norm_num_groups": 32, "sample_size": 512, "scaling_factor": 0.18215,
              "shift_factor": None, "latents_mean": None, "latents_std": None, "force_upcast": True}  # fmt: skip
_PUBLISHED_CHANNELS = 4
_PUBLISHED_VQ = {"act_fn": "silu", "norm_num_groups": 32, "sample_size": 256, "scaling_factor": 1.0}
_FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("model.diffusion_model.joint_blocks.", {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024}),
    ("model.diffusion_model.double_blocks.", {"scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024}),
    ("conditioner.embedders.", {"scaling_factor": 0.13025, "sample_size": 1024}),
)


@dataclass(frozen=True)
class LdmWeights:
    """An autoencoder out of a single LDM file, in diffusers' names and the stored types."""

    state: dict[str, Tensor]
    config: dict[str, Any]
    assumed: dict[str, Any]
    """Fields of the config that neither the file nor the user said: published values."""
    left_out: list[str]
    """Names in the file that belong to its training and not to the autoencoder."""

    @property
    def notes(self) -> list[str]:
        """Lines for the user: what was assumed, and what was left out."""
        lines = []
        if self.assumed:
            values = ", ".join(f"{name} {value}" for name, value in self.assumed.items() if value is not None)
            lines.append(f"The input doesn't say these, so they are as published for its family: {values}.")
        if self.left_out:
            averaged = any("ema" in name for name in self.left_out)
            lines.append(
                f"Left out, as parts of its training: {listed(self.left_out, most=3)}"
                + ("; among them averaged weights (EMA)." if averaged else ".")
            )
        return lines


def read_ldm_file(path: str | Path, *, config: dict[str, Any] | None = None) -> KL:
    """Load an autoencoder from a single LDM file (bare, or inside a full checkpoint) in float32 and eval mode.

    Args:
        path: A safetensors file or a torch pickle.
        config: Fields of diffusers' config that the file can't say, or says wrongly.

    Raises:
        ValueError: The file is no KL autoencoder, or not a whole one, or contradicts `config`.
    """
    return family_of_weights(read_ldm_weights(path, config=config))


def family_of_weights(weights: LdmWeights) -> KL:
    """Return the autoencoder in float32 and eval mode."""
    family = class_of(weights.config).from_config(weights.config, device="meta")
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.state.items()}
    family.model.load_state_dict(state, assign=True)
    return family.eval()


def read_ldm_weights(
    path: str | Path, *, config: dict[str, Any] | None = None, needs_scaling: bool = True
) -> LdmWeights:
    """Read the autoencoder's tensors alone out of a single LDM file. Arguments and errors as in `read_ldm_file`.

    Args:
        path: A safetensors file or a torch pickle.
        config: Fields of diffusers' config that the file can't say, or says wrongly.
        needs_scaling: Whether a file that doesn't say how its latents are scaled, and is of an architecture that was
            published with several scalings, is an error.
    """
    file = open_weights(path)
    prefix = _find_prefix(file)
    left_out = [name for name in file.names if not prefix and name.startswith(_TRAINING_LEFTOVERS)]
    names = [name for name in file.names if name.startswith(prefix) and name not in set(left_out)]
    left_out += file.left_out
    ldm_state = {name.removeprefix(prefix): tensor for name, tensor in file.load(names).items()}
    override = config or {}
    assumed: dict[str, Any] = {}
    try:
        kind = VQ if CODEBOOK in ldm_state else KL
        check_fields({"_class_name": kind.class_name()} | override)
        check_numbers(override)
        if CONFIG_METADATA in file.metadata:
            stated = json.loads(file.metadata[CONFIG_METADATA])
        else:
            published, known = (_PUBLISHED_VQ, True) if kind is VQ else _published(file.names)
            assumed = {name: value for name, value in published.items() if name not in override}
            stated = infer_config(ldm_state) | assumed
            if needs_scaling and not known and "scaling_factor" in assumed:
                _ask_for_scaling(stated["latent_channels"])
        state, complete = diffusers_state_dict(ldm_state, config=stated | override)
    except ValueError as error:
        raise within(str(path), error) from error
    return LdmWeights(state=state, config=complete, assumed=assumed, left_out=left_out)


def ldm_state_dict(state: Mapping[str, Tensor], *, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a KL autoencoder's state dict into the LDM layout; types and bits stay.

    Attention projections become 1x1 convolutions [c, c, 1, 1]. Readers of the layout expect attention in the middle
    block: a model without it gets one whose projections are all zero, which adds nothing to the residual.

    Raises:
        ValueError: A tensor is missing, extra or of the wrong shape, or the layout can't say what `config` does.
    """
    full = full_config(config)
    if full["act_fn"] != "silu":
        raise ValueError(f"act_fn is {full['act_fn']!r}; the LDM layout is for 'silu' alone")
    ldm_state = {}
    for name, tensor in checked_state_dict(state, family=class_of(config), config=config).items():
        ldm = ldm_name(name, num_levels=len(full["block_out_channels"]))
        ldm_state[ldm] = tensor.reshape(ldm_shape(ldm, tensor.shape))
    if not full["mid_block_add_attention"]:
        like = ldm_state["encoder.mid.block_1.norm1.weight"]
        for block in MID_ATTENTION:
            ldm_state |= inert_attention(block, like=like)
    return ldm_state


def diffusers_state_dict(
    ldm_state: Mapping[str, Tensor], *, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Rename an LDM state dict (no prefix) into diffusers' names; types and bits stay.

    Args:
        ldm_state: Attention may be 1x1 convolutions or linear, under LDM's names or diffusers' old or new ones.
        config: The config as diffusers has it. Without it the config is read from the shapes, with the values
            published for kl-f8.

    Returns:
        The state dict and the config, which is `config` itself where that is given.

    Raises:
        ValueError: A tensor is missing, extra or of the wrong shape, or contradicts `config`.
    """
    named = canonical_names(ldm_state)
    structure = infer_config(named)
    published = _PUBLISHED_VQ if CODEBOOK in named else _PUBLISHED
    complete = dict(config) if config is not None else structure | published
    model = _meta_family(complete).model
    _check_structure(structure, config=model.config)
    if not model.config.mid_block_add_attention:
        named = {name: tensor for name, tensor in named.items() if not name.startswith(MID_ATTENTION)}
    shapes, names = {}, {}
    for name, tensor in model.state_dict().items():
        ldm = ldm_name(name, num_levels=len(model.config.block_out_channels))
        names[name], shapes[ldm] = ldm, ldm_shape(ldm, tensor.shape)
    named = fit_shapes(named, shapes=shapes)
    state = {name: named[names[name]].reshape(tensor.shape) for name, tensor in model.state_dict().items()}
    return state, complete


def full_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the class's defaults to a config that leaves fields out."""
    return dict(_meta_family(config).model.config)


def check_fields(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a field that the class doesn't know, or for the config of another class."""
    known = list(inspect.signature(class_of(config).diffusers_class).parameters)
    for name in config:
        if not name.startswith("_") and name not in known:
            raise ValueError(f"config has no field '{name}'{did_you_mean(name, known)}")


def _find_prefix(file: WeightFile) -> str:
    for prefix in _PREFIXES:
        if any(name.startswith((f"{prefix}encoder.down.", f"{prefix}decoder.up.")) for name in file.names):
            return prefix
    raise ValueError(f"{file.path} is not a KL autoencoder in LDM layout; it looks like {looks_like(file.names)}")


def _published(names: list[str]) -> tuple[dict[str, Any], bool]:
    """Return the config of the published model of the same family, and whether the names tell the family.

    Names other than the autoencoder's tell it: those of the diffusion model in a full checkpoint.
    """
    for marker, values in _FAMILIES:
        if any(name.startswith(marker) for name in names):
            return _PUBLISHED | values, True
    return dict(_PUBLISHED), any(name.startswith("model.diffusion_model.") for name in names)


def _ask_for_scaling(latent_channels: int) -> None:
    if latent_channels != _PUBLISHED_CHANNELS:
        published = "; SD3's are 1.5305 and 0.0609, FLUX's 0.3611 and 0.1159" if latent_channels == 16 else ""
        raise FieldError(
            f"the file doesn't say how its {latent_channels} latent channels are scaled; give "
            f"{mark('scaling_factor')} and {mark('shift_factor')}{published}, or its config.json"
        )


def _meta_family(config: Mapping[str, Any]) -> KL:
    """Build the model without memory for its weights, to read its names and shapes."""
    family = class_of(config)
    groups, widths = config.get("norm_num_groups", 32), config.get("block_out_channels", [64])
    if any(width % groups for width in widths):
        raise ValueError(f"norm_num_groups is {groups}, which does not divide the widths {list(widths)}; "
                         f"give the right number in a config")  # fmt: skip
    return family.from_config(config, device="meta")


def _check_structure(structure: dict[str, Any], *, config: Mapping[str, Any]) -> None:
    for name, said in structure.items():
        stated = config.get(name)
        stated = list(stated) if isinstance(stated, tuple) else stated
        # Attention that changes nothing may be meant as such; absent attention is reported as missing.
        if name.startswith("_") or stated == said or (name == "mid_block_add_attention" and stated):
            continue
        if name == "vq_embed_dim" and stated is None and said == config["latent_channels"]:
            continue
        raise ValueError(f"config says {name} {stated}, the tensors say {said}")
