"""What other readers make of a single LDM file, since they don't know our metadata.

As read in their sources: ComfyUI (`comfy/sd.py`, class VAE) builds the published architecture with as many latent
channels as the file's tensors have, f8 or, where the fourth level is missing, f4; 64 channels it takes for
HunyuanImage's. A1111 (`modules/sd_vae.py`) loads a file strictly into the model's own first stage, which is f8 with 4
channels and quantisation convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_vae.models.families.vq import VQ
from ldm_vae.models.layouts.ldm import full_config
from ldm_vae.models.layouts.ldm_names import listed

_ARCHITECTURE = {"block_out_channels": ([128, 256, 512, 512], [128, 256, 512]), "layers_per_block": (2,),
                 "norm_num_groups": (32,), "in_channels": (3,), "out_channels": (3,)}  # fmt: skip
_A1111 = {"block_out_channels": ([128, 256, 512, 512],), "latent_channels": (4,), "use_quant_conv": (True,),
          "use_post_quant_conv": (True,)}  # fmt: skip
_HUNYUAN_CHANNELS = 64
_PUBLISHED_SCALING = (0.18215, 0.13025, 1.5305, 0.3611)


def reader_notes(config: Mapping[str, Any]) -> list[str]:
    """Return, a sentence each, what other programs do otherwise with an LDM file of this diffusers config."""
    full, notes = full_config(config), []
    if full["_class_name"] == VQ.class_name():
        return ["ComfyUI and A1111 build KL autoencoders whatever a file holds, so they can't use a codebook's."]
    others = _differences(full, known=_ARCHITECTURE)
    if any(kind.startswith("Attn") for kind in (*full["down_block_types"], *full["up_block_types"])):
        others.append("attention inside levels")
        notes.append("diffusers' from_single_file maps no attention inside levels: give it the diffusers folder.")
    if others:
        notes.append(f"ComfyUI and A1111 build kl-f8 whatever a file holds, so they can't use this: {listed(others)}.")
    else:
        if full["latent_channels"] == _HUNYUAN_CHANNELS:
            notes.append("ComfyUI takes any file of 64 latent channels for HunyuanImage's VAE, so it can't use this.")
        if unknown := _differences(full, known=_A1111):
            notes.append(f"A1111 builds f8 of 4 channels with quant_conv alone, so it can't use: {listed(unknown)}.")
    if full["scaling_factor"] not in _PUBLISHED_SCALING or full["latents_mean"] is not None:
        notes.append("ComfyUI and A1111 scale latents as their model's family does, not by the numbers in this file.")
    return notes


def _differences(config: Mapping[str, Any], *, known: Mapping[str, tuple[Any, ...]]) -> list[str]:
    differences = []
    for name, values in known.items():
        value = list(config[name]) if isinstance(config[name], tuple) else config[name]
        if value not in values:
            differences.append(f"{name} {value}")
    return differences
