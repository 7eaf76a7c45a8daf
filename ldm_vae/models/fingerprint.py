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
    """Digest of architecture, scaling and all weights."""
    encoder: str
    """Digest of architecture, encoder and quant_conv. It is equal where two autoencoders give the same latents, as
    before and after decoder-only training."""


def fingerprint(family: Family) -> Fingerprint:
    """Digest an autoencoder in float32. Where it was loaded from, and the file's layout, don't count."""
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
