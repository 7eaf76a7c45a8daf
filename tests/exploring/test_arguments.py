"""What Python calls with arguments that there aren't: each is refused, where it would pass for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ldm_vae import (
    augment_pictures,
    decode_latents,
    encode_images,
    interpolate_latents,
    interpolate_pictures,
    latent_direction,
    nearest_latents,
    sample_pictures,
)
from tests.exploring.conftest import Space
from tests.pictures import picture
from tests.tiny import tiny_autoencoder


@pytest.mark.parametrize(
    ("call", "arguments", "match"),
    [
        (sample_pictures, {"method": "pca"}, "method is 'pca'; it must be one of auto, prior, gaussian"),
        (sample_pictures, {"covariance": "Full"}, "covariance is 'Full'.* full, channel"),
        (sample_pictures, {"method": "prior", "count": 0}, "count is 0; it must be positive"),
        (sample_pictures, {"steps": 0}, "steps is 0"),
        (sample_pictures, {"batch_size": 0}, "batch_size is 0"),
        (latent_direction, {"kind": "maps"}, "kind is 'maps'.*did you mean 'map'"),
        (augment_pictures, {"copies": 0}, "copies is 0"),
        (augment_pictures, {"move": -1.0}, "move is -1.0; it can't be negative"),
        (encode_images, {"normalize": "channel"}, "normalize is 'channel'"),
        (decode_latents, {"normalize": "channel"}, "normalize is 'channel'"),
    ],
)
def test_arguments_that_there_are_not(call: Callable[..., Any], arguments: dict[str, Any], match: str) -> None:
    image = picture(0)
    given: dict[Any, tuple[Any, ...]] = {
        sample_pictures: (torch.zeros(3, 4, 8, 8),), latent_direction: (image, image),
        decode_latents: (torch.zeros(4, 8, 8),),
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        call(tiny_autoencoder(), *given.get(call, (image,)), **arguments)


def test_ways_and_distances_that_there_are_not(space: Space) -> None:
    ends = torch.randn(2, 4, 3, 3)
    with pytest.raises(ValueError, match="path is 'slerp'; it must be one of linear, spherical"):
        interpolate_latents(*ends, steps=3, path="slerp")  # type: ignore[arg-type]
    vae = tiny_autoencoder()
    for size in ((24, 1), (1, 24)):
        with pytest.raises(
            ValueError, match=r"pictures of 24x20 and .* pixels: one has fewer than .* factor 2 a side"
        ):
            interpolate_pictures(vae, picture(0), picture(1, size=size))
    for arguments, match in (({"distance": "cos"}, "distance is 'cos'"), ({"count": -1}, "count is -1")):
        with pytest.raises(ValueError, match=match):
            nearest_latents(vae, picture(0), space.latents, **arguments)  # type: ignore[arg-type]
