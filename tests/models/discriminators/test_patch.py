"""The discriminator: images of a call don't mix, unless the published norm is asked for."""

from __future__ import annotations

import pytest
import torch

from ldm_vae.models.discriminators.patch import PatchDiscriminator


def test_group_norm_judges_each_image_by_itself() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(in_channels=3, channels=8)
    images, reconstruction = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    real, fake, _ = discriminator(images, reconstruction)
    assert real.shape == fake.shape == (2, 1, 6, 6)
    alone = torch.cat([discriminator.logits(image[None]) for image in images])
    torch.testing.assert_close(real, alone)
    torch.testing.assert_close(fake, discriminator.logits(reconstruction))


def test_batch_norm_sees_real_and_fake_apart() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(in_channels=3, channels=8, norm="batch")
    images, reconstruction = torch.randn(2, 3, 64, 64), 3 + torch.randn(2, 3, 64, 64)
    real, fake, _ = discriminator(images, reconstruction)
    torch.testing.assert_close(real, discriminator.logits(images))
    together = discriminator.logits(torch.cat([images, reconstruction]))
    assert not torch.allclose(torch.cat([real, fake]), together, atol=1e-3)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_no_buffers_to_broadcast(norm: str) -> None:
    assert not list(PatchDiscriminator(in_channels=1, norm=norm).buffers())


def test_published_size_and_patch() -> None:
    """64 channels, 3 layers: 2.8 M weights, and a logit sees 70 pixels."""
    discriminator = PatchDiscriminator(in_channels=3)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633
    images = torch.zeros(1, 3, 256, 256, requires_grad=True)
    convolutions = [layer for layer in discriminator.layers if isinstance(layer, torch.nn.Conv2d)]
    logits = torch.nn.Sequential(*convolutions)(images)  # a norm would let every pixel in
    logits[0, 0, 15, 15].backward()
    seen = images.grad[0, 0].nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_layers_are_the_published_ones() -> None:
    """Each twice as wide as the one before, up to 8 times the first; all but the last two halve the side."""
    layers = PatchDiscriminator(in_channels=3, channels=4, num_layers=5).layers
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [4, 8, 16, 32, 32, 32, 1]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 2, 2, 1, 1]
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    assert [layer.negative_slope for layer in layers if isinstance(layer, torch.nn.LeakyReLU)] == [0.2] * 6


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_first_weights_are_the_published_ones(norm: str) -> None:
    torch.manual_seed(0)
    for layer in PatchDiscriminator(in_channels=3, norm=norm).layers[:-1]:
        if isinstance(layer, torch.nn.Conv2d):
            assert layer.weight.mean().abs() < 2e-3
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        elif not isinstance(layer, torch.nn.LeakyReLU):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.3)
            assert not layer.bias.any()
