"""What changes latents and images alike, against plain formulas, an image at a time."""

from __future__ import annotations

import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.models.interventions import Equivariance, LowPass, NoisyLatents, transformed

QUARTERS = torch.tensor([0, 1, 2, 3, 3])
MIRRORS = torch.tensor([False, True, False, True, False])


def pictures(side: int = 16, channels: int = 3, size: int = 5) -> Tensor:
    return torch.randn(size, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [4, 11, 16])
def test_a_transform_scales_mirrors_and_turns_each_picture(side: int) -> None:
    images = pictures()
    moved = transformed(images, size=(side, side), rotation=QUARTERS, mirror=MIRRORS)
    for image, got, quarters, mirror in zip(images, moved, QUARTERS.tolist(), MIRRORS.tolist(), strict=True):
        plain = F.interpolate(image[None], size=(side, side), mode="bilinear", antialias=True)
        plain = torch.rot90(plain.flip(-1) if mirror else plain, quarters, (-2, -1))
        torch.testing.assert_close(got, plain[0])


def test_what_is_not_square_keeps_its_shape_by_half_turns() -> None:
    images = pictures()[..., :10]
    rotation = torch.tensor([0, 2, 2, 0, 2])
    moved = transformed(images, size=(12, 6), rotation=rotation, mirror=MIRRORS)
    for image, got, quarters, mirror in zip(images, moved, rotation.tolist(), MIRRORS.tolist(), strict=True):
        plain = F.interpolate(image[None], size=(12, 6), mode="bilinear", antialias=True)
        torch.testing.assert_close(got, torch.rot90(plain.flip(-1) if mirror else plain, quarters, (-2, -1))[0])


def test_its_gradient_is_that_of_the_plain_formula() -> None:
    images = pictures().double().float().requires_grad_()
    weights = torch.randn(5, 3, 11, 11)
    (ours,) = torch.autograd.grad(
        (weights * transformed(images, size=(11, 11), rotation=QUARTERS, mirror=MIRRORS)).sum(), images
    )
    plain = F.interpolate(images, size=(11, 11), mode="bilinear", antialias=True)
    turned = [
        torch.rot90(one.flip(-1) if mirror else one, quarters, (-2, -1))
        for one, quarters, mirror in zip(plain, QUARTERS.tolist(), MIRRORS.tolist(), strict=True)
    ]
    (expected,) = torch.autograd.grad((weights * torch.stack(turned)).sum(), images)
    torch.testing.assert_close(ours, expected)


def test_latents_and_images_move_alike() -> None:
    """Images that are the latents, each pixel written out as 2x2, stay so."""
    latents = pictures(side=8)
    images = latents.repeat_interleave(2, -1).repeat_interleave(2, -2)
    draws = {"eq_scale": 1.0, "rotation": QUARTERS, "mirror": MIRRORS}
    z, x = Equivariance(factor=2)(latents, images, draws)
    assert torch.equal(z.repeat_interleave(2, -1).repeat_interleave(2, -2), x)
    assert not torch.equal(z[1], latents[1])
    z, x = Equivariance(factor=2)(latents, images, {**draws, "eq_scale": 0.6})
    assert (z.shape[-1], x.shape[-1]) == (5, 10)
    without = {"rotation": QUARTERS, "mirror": MIRRORS}
    assert Equivariance(factor=2)(latents, images, without)[0] is latents


@pytest.mark.parametrize("kind", ["interpolative", "additive", "relative"])
def test_noise_on_latents_has_each_images_strength(kind: str) -> None:
    z, noise, part = pictures(side=4), pictures(side=6), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    noisy, images = NoisyLatents(kind=kind, strength=3.0)(z, z, {"latent_noise": noise, "noise_strength": part})
    assert images is z
    for i, u in enumerate(part.tolist()):
        n = noise[i, :, :4, :4]
        expected = {
            "interpolative": (1 - u) * z[i] + 3 * u * n,
            "additive": z[i] + 3 * u * n,
            "relative": z[i] + 3 * u * n * z[i].std(),
        }[kind]
        torch.testing.assert_close(noisy[i], expected)


def test_relative_noise_has_no_gradient_of_its_own() -> None:
    """Else the latents' spread would shrink, to have less noise."""
    z, noise, part = pictures(side=4).requires_grad_(), pictures(side=4), torch.full((5,), 0.5)
    noisy, _ = NoisyLatents(kind="relative", strength=3.0)(z, z, {"latent_noise": noise, "noise_strength": part})
    weights = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((weights * noisy).sum(), z)
    assert torch.equal(gradient, weights)


def test_low_pass_removes_the_high_frequencies_of_each_block() -> None:
    images, numbers = pictures(side=16), torch.tensor([0, 8, 10, 12, 14])
    low, _ = LowPass()(images, images, {"low_pass": numbers})
    assert torch.equal(low[0], images[0])
    for image, got, number in zip(images[1:], low[1:], numbers[1:].tolist(), strict=True):
        for top in (0, 8):
            for left in (0, 8):
                block = image[:, top : top + 8, left : left + 8].numpy()
                coefficients = scipy.fft.dctn(block, axes=(1, 2), norm="ortho")
                for u in range(8):
                    for v in range(8):
                        if u + v >= 14 - (number - 1):
                            coefficients[:, u, v] = 0
                expected = torch.from_numpy(scipy.fft.idctn(coefficients, axes=(1, 2), norm="ortho"))
                torch.testing.assert_close(
                    got[:, top : top + 8, left : left + 8], expected.float(), atol=1e-5, rtol=1e-4
                )
