"""Pixels against the pictures that hold them."""

import numpy as np
import torch

from ldm_vae.images.transforms import to_image
from ldm_vae.system.pixels import from_pixels, to_pixels


def test_pixels_are_those_of_the_saved_picture() -> None:
    image = 1.5 * torch.randn(3, 64, 64)
    saved = np.asarray(to_image(image))
    assert (to_pixels(image).permute(1, 2, 0).numpy() == saved).all()


def test_all_pixels_come_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    values = from_pixels(pixels)
    assert (values.min(), values.max(), values.dtype) == (-1, 1, torch.float32)
    assert torch.equal(to_pixels(values), pixels.float())
    assert pixels[1] == 1  # changed in place would be -1
    assert to_pixels(torch.tensor([float("nan"), -7.0, float("inf")])).isnan().tolist() == [True, False, False]
