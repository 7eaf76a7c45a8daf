"""What names and shapes of the LDM layout say of diffusers' config, and which class it is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import diffusers
from torch import Tensor

from ldm_vae.models.families.kl import KL
from ldm_vae.models.families.vq import VQ
from ldm_vae.models.layouts.ldm_names import MID_ATTENTION, canonical_names, has_inert_attention, listed

CODEBOOK = "quantize.embedding.weight"
"""The tensor that tells a VQ autoencoder from a KL one."""
_CLASSES: dict[str, type[KL]] = {family.class_name(): family for family in (KL, VQ)}
_LEVEL = re.compile(r"(?:encoder\.down|decoder\.up)\.(\d+)\.")
_DOWN = {False: "DownEncoderBlock2D", True: "AttnDownEncoderBlock2D"}
_UP = {False: "UpDecoderBlock2D", True: "AttnUpDecoderBlock2D"}


def class_of(config: Mapping[str, Any]) -> type[KL]:
    """Return the family of a diffusers config, AutoencoderKL's where it doesn't say.

    Raises:
        ValueError: The layout is for other classes.
    """
    name = config.get("_class_name", KL.class_name())
    if name not in _CLASSES:
        raise ValueError(f"config is that of {name}, not of {' or '.join(_CLASSES)}")
    return _CLASSES[name]


def infer_config(ldm_state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off names and shapes of an LDM state dict what they say of diffusers' config.

    Raises `ValueError` where the tensors that say it are missing, or aren't those of an autoencoder for images.
    """
    ldm_state = canonical_names(ldm_state)
    levels = 1 + max((int(found[1]) for name in ldm_state if (found := _LEVEL.match(name))), default=0)
    widths = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    needed = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight", *widths)
    if missing := [name for name in needed if name not in ldm_state]:
        raise ValueError(f"not a whole KL autoencoder; missing: {listed(missing)}")
    if any(ldm_state[name].ndim == 5 for name in needed):
        raise ValueError("this is a video autoencoder (its convolutions are three-dimensional)")

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in ldm_state)

    if CODEBOOK in ldm_state:
        codes, dimension = ldm_state[CODEBOOK].shape
        kind: dict[str, Any] = {"_class_name": VQ.class_name(), "num_vq_embeddings": codes, "vq_embed_dim": dimension}
    else:
        kind = {"_class_name": KL.class_name(), "use_quant_conv": has("quant_conv."),
                "use_post_quant_conv": has("post_quant_conv.")}  # fmt: skip
    return kind | {
        "_diffusers_version": diffusers.__version__,
        "in_channels": ldm_state["encoder.conv_in.weight"].shape[1],
        "out_channels": ldm_state["decoder.conv_out.weight"].shape[0],
        "latent_channels": ldm_state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [ldm_state[name].shape[0] for name in widths],
        "layers_per_block": sum(has(f"encoder.down.0.block.{j}.") for j in range(len(ldm_state))),
        "down_block_types": [_DOWN[has(f"encoder.down.{i}.attn.")] for i in range(levels)],
        "up_block_types": [_UP[has(f"decoder.up.{i}.attn.")] for i in reversed(range(levels))],
        "mid_block_add_attention": any(has(f"{block}.") for block in MID_ATTENTION)
        and not has_inert_attention(ldm_state),
    }
