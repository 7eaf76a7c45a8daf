"""Recomputed activations: how often a block runs, and that gradients stay."""

from __future__ import annotations

import pytest
import torch

from ldm_vae.models.checkpointing import checkpoint_activations
from tests.tiny import random_images, tiny_family


@pytest.mark.parametrize("level", ["blocks", "full"])
def test_recomputed_activations_give_the_same_gradients(level: str) -> None:
    gradients = []
    for used in ("none", level):
        family = tiny_family(attention_levels=[1]).train()
        autoencoder = family.model
        checkpoint_activations(family, used)
        calls = []
        autoencoder.decoder.mid_block.resnets[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        images = random_images()
        reconstruction = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample
        (reconstruction - images).abs().mean().backward()
        gradients.append([parameter.grad for parameter in autoencoder.parameters()])
        assert len(calls) == {"none": 1, "blocks": 2, "full": 3}[used]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-8)
