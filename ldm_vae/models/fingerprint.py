"""What tells two autoencoders apart: a digest over configuration and weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL

SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
_ARCHITECTURE = (
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "act_fn", "latent_channels", "norm_num_groups", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
)  # fmt: skip
_DECODER = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """SHA-256 digests, in hexadecimal."""

    whole: str
    """Of architecture, scaling and all weights."""
    encoder: str
    """Of architecture, encoder and quant_conv: equal where two autoencoders give the same latents, such as those that
    differ by decoder-only training."""


def fingerprint(autoencoder: AutoencoderKL) -> Fingerprint:
    """Digest an autoencoder in float32; where it was loaded from and how its file was laid out don't count."""
    architecture = {name: autoencoder.config.get(name) for name in _ARCHITECTURE}
    encoder = hashlib.sha256(_json(architecture))
    decoder = hashlib.sha256(_json(scaling(autoencoder)))
    for name, weight in sorted(autoencoder.state_dict().items()):
        digest = decoder if name.startswith(_DECODER) else encoder
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    whole = hashlib.sha256(encoder.digest() + decoder.digest())
    return Fingerprint(whole=whole.hexdigest(), encoder=encoder.hexdigest())


def scaling(autoencoder: AutoencoderKL) -> dict[str, Any]:
    """What a pipeline scales the latents by: scaling_factor, shift_factor, latents_mean and latents_std; none where
    the configuration hasn't any."""
    return {name: autoencoder.config.get(name) for name in SCALING}


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, default=list).encode()
