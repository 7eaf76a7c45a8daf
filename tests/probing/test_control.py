"""The control: the same pictures come out, and its latents are noise to the panel."""

import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from ldm_vae.metrics.spectrum import cosine_power, high_share
from ldm_vae.models.families import family_of
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.probing.control import ScrambledAutoencoder
from tests.pictures import picture
from tests.tiny import tiny_autoencoder


@pytest.mark.parametrize("side", [32, 12])
def test_scrambled_latents_decode_to_the_same_pictures(side: int) -> None:
    images = torch.stack([pil_to_tensor(picture(i, size=(side, side))) for i in range(4)]) / 127.5 - 1
    plain = InferenceAutoencoder(family_of(tiny_autoencoder()), bf16=False, device=torch.device("cpu"))
    scrambled = ScrambledAutoencoder(
        family_of(tiny_autoencoder()), side=side // 2, bf16=False, device=torch.device("cpu")
    )
    mean, std = plain.encode(images)
    mixed, mixed_std = scrambled.encode(images)
    assert mixed.shape == mean.shape
    assert torch.allclose(mixed.square().sum(), mean.square().sum(), rtol=1e-4)  # turned, not scaled
    assert torch.allclose(mixed_std.square().sum(), std.square().sum(), rtol=1e-4)
    assert (mixed - mean).square().mean() > 0.5 * mean.square().mean()
    assert torch.allclose(scrambled.decode(mixed), plain.decode(mean), atol=1e-4)
    shares = [high_share(cosine_power(latents)).mean().item() for latents in (mean, mixed)]
    assert shares[1] > shares[0] + 0.1
