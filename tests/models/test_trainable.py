"""The module that is trained: one forward is what diffusers computes, interventions included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_vae.models.trainable import Draws, TrainableAutoencoder
from tests.tiny import random_images, tiny_family


@pytest.mark.parametrize("use_quant_conv", [True, False])
def test_one_forward_is_what_diffusers_computes(use_quant_conv: bool) -> None:
    family = tiny_family(use_quant_conv=use_quant_conv, attention_levels=[1])
    autoencoder = family.model
    images, noise = random_images(), torch.randn(2, 4, 16, 16)
    trainable = TrainableAutoencoder(family, decoder_only=False, learn_logvar=False, logvar_init=0.0)
    output = trainable(images, noise)
    posterior = autoencoder.encode(images).latent_dist
    torch.testing.assert_close(output.latent.mean, posterior.mean)
    torch.testing.assert_close(output.latent.posterior_logvar, posterior.logvar)
    latents = posterior.mean + posterior.std * noise
    torch.testing.assert_close(output.reconstruction, autoencoder.decode(latents).sample)
    torch.testing.assert_close(trainable.last_layer(output.features), output.reconstruction)
    mean, std = family.encode_moments(images)
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(std, posterior.std)


def test_interventions_change_the_sample_and_its_target_in_turn() -> None:
    def scale(z: Tensor, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        return z * draws["scale"][:, None, None, None], images

    def mirror(z: Tensor, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        return z.flip(-1), images.flip(-1)

    family, images, noise = tiny_family(), random_images(), torch.randn(2, 4, 16, 16)
    trainable = TrainableAutoencoder(
        family, decoder_only=False, learn_logvar=False, logvar_init=0.0, interventions=[scale, mirror]
    )
    output = trainable(images, noise, {"scale": torch.tensor([2.0, 3.0])})
    posterior = family.model.encode(images).latent_dist
    z = posterior.mean + posterior.std * noise
    expected = family.model.decode((z * torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)).flip(-1)).sample
    torch.testing.assert_close(output.latent.z, z)  # what the terms on latents see is the sample itself
    torch.testing.assert_close(output.reconstruction, expected)
    assert torch.equal(output.images, images.flip(-1))
