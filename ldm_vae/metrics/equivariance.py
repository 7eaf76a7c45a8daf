"""Whether an encoder commutes with what can be done to a picture: E(T x) against T E(x).

A diffusion model that has learnt a part in one pose then knows it in others (Kouzelis et al. 2025, "EQ-VAE",
arXiv 2502.09509; Skorokhodov et al. 2025, "Improving the Diffusability of Autoencoders", arXiv 2502.14831).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor, nn

from ldm_vae.system.float64 import in_float64

SCALES = (Fraction(1, 2), Fraction(3, 4))
GROUPS = ("rotation", "flip", "scale")


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Something that can be done to pictures and to latents alike."""

    name: str
    group: str
    """`rotation`, `flip` or `scale`."""
    apply: Callable[[Tensor], Tensor]
    """From maps [B, c, h, w] to maps [B, c, h', w']."""


def transforms(side: int) -> list[Transform]:
    """Return the transforms that latents of `side` x `side` are tried with.

    They are three turns, two mirrors, and those of `SCALES` that leave a whole number of latent pixels.
    """
    turns = [
        Transform(name=f"turn{90 * k}", group="rotation", apply=partial(torch.rot90, k=k, dims=(-2, -1)))
        for k in (1, 2, 3)
    ]
    mirrors = [
        Transform(name=name, group="flip", apply=partial(torch.flip, dims=(axis,)))
        for name, axis in (("mirror", -1), ("upside_down", -2))
    ]
    scales = [
        Transform(name=f"scale{float(scale):g}", group="scale", apply=partial(rescale, scale=scale))
        for scale in SCALES
        if (side * scale).denominator == 1
    ]
    return turns + mirrors + scales


def rescale(maps: Tensor, *, scale: Fraction) -> Tensor:
    """Return maps [B, c, h, w] at `scale`, bilinear without antialiasing, as EQ-VAE trains."""
    height, width = (int(side * scale) for side in maps.shape[-2:])
    return nn.functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


def squared_error(moved: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum |E(T x) - T E(x)|² and sum |E(T x)|² of each image, [B] float64.

    The square root of the quotient of their totals is the equivariance error: 0 where E commutes with T, and about
    1.4 where the two have nothing in common.

    Args:
        moved: E(T x) [B, c, h, w], its channels of mean 0 and standard deviation 1 over the data.
        expected: T E(x) [B, c, h, w], likewise.
    """
    moved, expected = in_float64(moved), in_float64(expected)
    return (moved - expected).square().flatten(1).sum(1), moved.square().flatten(1).sum(1)
