"""Latents brought to the places and channels of a frozen network's features, for the alignment of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_vae.models.frozen.vision import VisionNetwork
from ldm_vae.models.resizing import resized


class Projection(nn.Module):
    """A linear map of each place's latent to the features' channels, which is trained with the alignment.

    Args:
        latent_channels: Channels of the latent.
        channels: Channels of the features.
    """

    def __init__(self, latent_channels: int, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(latent_channels, channels, 1, bias=False)

    def forward(self, z: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return [B, channels, rows, columns] of latents [B, c, h, w], which are averaged over the grid's places."""
        return self.layer(resized(z, grid, kind="area"))


def features_at_latents(
    network: VisionNetwork, images: Tensor, *, latent_size: tuple[int, int], factor: int
) -> Tensor:
    """Return the network's last features of images, at places that both it and the latents have.

    Images are scaled so that the network's places and the latents cover each other: of its patch and the `factor`, the
    larger is taken for a place, and the smaller goes into it as many times as fits best. Thus a picture is seen about
    as large as it is, in its own aspect.

    Args:
        network: Gives one map.
        images: [B, C, H, W] in [-1, 1].
        latent_size: Height and width of the latents.
        factor: Side of the square of image pixels that one latent pixel stands for.

    Returns:
        [B, channels, rows, columns], without a graph.
    """
    patch = network.trunk.patch_size
    latents_a_place, places_a_latent = max(1, round(patch / factor)), max(1, round(factor / patch))
    rows, columns = (max(1, round(side / latents_a_place)) for side in latent_size)
    with torch.no_grad():
        (features,) = network(images, (rows * places_a_latent, columns * places_a_latent))
        return resized(features, (rows, columns), kind="area")
