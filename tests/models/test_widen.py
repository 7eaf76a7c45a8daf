"""Other numbers of latent channels: what was learnt is kept."""

from __future__ import annotations

import pytest
import torch

from ldm_vae.models.widen import with_latent_channels
from tests.tiny import random_images, tiny_family


@pytest.mark.parametrize("use_quant_conv", [True, False])
@pytest.mark.parametrize("latent_channels", [16, 2])
def test_other_latent_channels_keep_the_old_ones(latent_channels: int, use_quant_conv: bool) -> None:
    family = tiny_family(use_quant_conv=use_quant_conv)
    images = random_images()
    widened = with_latent_channels(family, latent_channels)
    kept = min(4, latent_channels)
    for old, new in zip(family.encode_moments(images), widened.encode_moments(images), strict=True):
        assert new.shape[1] == latent_channels
        torch.testing.assert_close(new[:, :kept], old[:, :kept])
    if latent_channels > 4:
        torch.testing.assert_close(widened.reconstruct(images).images, family.reconstruct(images).images)
        other = widened.encode_moments(images)[0][:, 4:]
        assert other.std() > 0  # the new channels are not dead
        widened.model.requires_grad_(True)
        latents = widened.model.encode(images).latent_dist.mean
        widened.model.decode(latents).sample.square().mean().backward()
        assert widened.model.decoder.conv_in.weight.grad[:, 4:].abs().sum() > 0
