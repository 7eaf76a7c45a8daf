"""Fingerprints: equal for equal models, and apart for each thing that two models can differ in."""

from __future__ import annotations

from diffusers import AutoencoderKL

from ldm_vae.models.families import family_of
from ldm_vae.models.fingerprint import Fingerprint, fingerprint
from tests.tiny import tiny_autoencoder


def digests(autoencoder: AutoencoderKL) -> Fingerprint:
    return fingerprint(family_of(autoencoder))


def test_fingerprints_tell_weights_scaling_and_halves_apart() -> None:
    first = digests(tiny_autoencoder())
    assert digests(tiny_autoencoder()) == first
    assert digests(tiny_autoencoder(seed=1)).encoder != first.encoder
    rescaled = digests(tiny_autoencoder(scaling_factor=0.5))
    assert rescaled.whole != first.whole
    assert rescaled.encoder == first.encoder
    for name in ("decoder.conv_out.bias", "post_quant_conv.bias"):
        autoencoder = tiny_autoencoder()
        autoencoder.get_parameter(name).data[0] += 1e-6
        assert digests(autoencoder).whole != first.whole
        assert digests(autoencoder).encoder == first.encoder
    autoencoder = tiny_autoencoder()
    autoencoder.get_parameter("quant_conv.bias").data[0] += 1e-6
    assert digests(autoencoder).encoder != first.encoder
