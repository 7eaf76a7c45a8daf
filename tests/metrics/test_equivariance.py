"""Transforms of latents, and an error that is nothing where an encoder commutes with them."""

import math

import torch
from torch import nn

from ldm_vae.metrics.equivariance import squared_error, transforms


def relative(encode: nn.Module, images: torch.Tensor) -> dict[str, float]:
    latents = encode(images)
    errors: dict[str, float] = {}
    for transform in transforms(latents.shape[-1]):
        error, size = squared_error(encode(transform.apply(images)), transform.apply(latents))
        errors[transform.name] = math.sqrt(error.sum().item() / size.sum().item())
    return errors


@torch.no_grad()
def test_an_encoder_that_averages_commutes_and_one_that_looks_sideways_does_not() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    errors = relative(nn.AvgPool2d(2), images)
    assert set(errors) == {"turn90", "turn180", "turn270", "mirror", "upside_down", "scale0.5", "scale0.75"}
    assert max(errors[name] for name in errors if "scale" not in name) < 1e-6
    assert errors["scale0.5"] < 1e-6  # bilinear halving is averaging too

    shifted = nn.Conv2d(3, 4, 2, stride=2)
    nn.init.zeros_(shifted.weight)
    shifted.weight[:, 0, 0, 0] = 1  # takes the pixel at the upper left
    errors = relative(shifted, images)
    assert all(errors[name] > 1 for name in ("turn90", "turn180", "turn270", "mirror", "upside_down"))


def test_scales_are_tried_where_they_leave_whole_latent_pixels() -> None:
    assert [each.name for each in transforms(6) if each.group == "scale"] == ["scale0.5"]
    assert [each.name for each in transforms(7) if each.group == "scale"] == []
    (scale,) = (each for each in transforms(8) if each.name == "scale0.75")
    assert scale.apply(torch.zeros(1, 2, 8, 8)).shape == (1, 2, 6, 6)
