"""What tells two autoencoders apart: a digest over configuration and weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from ldm_vae.models.families.family import Family


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """SHA-256 digests, in hexadecimal."""

    whole: str
    """Of architecture, scaling and all weights."""
    encoder: str
    """Of architecture, encoder and quant_conv: equal where two autoencoders give the same latents, such as those that
    differ by decoder-only training."""


def fingerprint(family: Family) -> Fingerprint:
    """Digest an autoencoder in float32; where it was loaded from and how its file was laid out don't count."""
    architecture = {name: family.model.config.get(name) for name in family.architecture}
    encoder = hashlib.sha256(_json(architecture))
    decoder = hashlib.sha256(_json(family.scaling))
    for name, weight in sorted(family.model.state_dict().items()):
        digest = decoder if name.startswith(family.decoder_names) else encoder
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    whole = hashlib.sha256(encoder.digest() + decoder.digest())
    return Fingerprint(whole=whole.hexdigest(), encoder=encoder.hexdigest())


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, default=list).encode()
