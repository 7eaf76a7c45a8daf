"""Where latents and features meet: the same places, at any size and factor."""

from __future__ import annotations

import pytest
import torch

from ldm_vae.models.frozen.vision import VisionNetwork, load_vision
from ldm_vae.models.projection import Projection, features_at_latents
from tests.vision import save_vision


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> VisionNetwork:
    folder = tmp_path_factory.mktemp("dinov2")
    save_vision("dinov2", folder)
    return load_vision("dinov2", folder=str(folder), depth="last", choice="a", field="b")


@pytest.mark.parametrize(
    ("factor", "latent_size", "seen", "places"),
    [
        (4, (8, 6), (32, 24), (8, 6)),  # a place is a patch, and a latent pixel
        (2, (16, 12), (32, 24), (8, 6)),  # 2x2 latent pixels
        (2, (5, 7), (8, 16), (2, 4)),  # where they don't divide
        (8, (4, 3), (32, 24), (4, 3)),  # 2x2 patches
        (3, (8, 6), (32, 24), (8, 6)),  # nearly a patch: the picture is enlarged
    ],
)
def test_places_are_the_larger_of_patch_and_latent_pixel(
    network: VisionNetwork,
    factor: int,
    latent_size: tuple[int, int],
    seen: tuple[int, int],
    places: tuple[int, int],
) -> None:
    sizes = []
    hook = network.trunk.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    images = torch.rand(1, 3, factor * latent_size[0], factor * latent_size[1]) * 2 - 1
    features = features_at_latents(network, images.requires_grad_(), latent_size=latent_size, factor=factor)
    hook.remove()
    assert sizes == [seen]
    assert features.shape == (1, 16, *places)
    assert not features.requires_grad
    assert Projection(4, 16)(torch.randn(1, 4, *latent_size), places).shape == features.shape


def test_places_of_both_lie_over_each_other(network: VisionNetwork) -> None:
    """A corner that is other than the rest is in the same corner of features and of projected latents."""
    images = torch.zeros(1, 3, 32, 32)
    images[..., :8, 24:] = 1.0
    latents = images[:, :1, ::2, ::2].repeat(1, 4, 1, 1)
    features = features_at_latents(network, images, latent_size=(16, 16), factor=2)
    difference = (features - features_at_latents(network, 0 * images, latent_size=(16, 16), factor=2)).square().sum(1)
    projected = Projection(4, 16)(latents, (8, 8)).square().sum(1)
    for found in (difference[0], projected[0]):
        assert found[:2, 6:].mean() > 3 * found[2:, :6].mean()


def test_the_projection_is_linear_and_averages_over_places() -> None:
    projection = Projection(3, 5)
    z = torch.randn(1, 3, 4, 4)
    means = torch.nn.functional.avg_pool2d(z, 2)
    torch.testing.assert_close(projection(z, (2, 2)), torch.nn.functional.conv2d(means, projection.layer.weight))
