"""Strips against the whole image, on one image: what an export tells of its autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.models.exact.networks import make_program
from ldm_vae.models.exact.run import Execution, Layout
from ldm_vae.models.families.family import Family

NUM_STRIPS = 4  # that every map is cut into


@dataclass(frozen=True, kw_only=True)
class StripsCheck:
    """How far strips are from the whole image, at one size, in the autoencoder's own precision."""

    width: int
    height: int
    latent_error: float | None
    """Largest difference of the encoder's output, as a part of its range; None where the encoder isn't trained."""
    picture_error: float
    """Largest difference of the decoded picture, as a part of its range."""


@torch.no_grad()
def check_strips(family: Family, image: Tensor) -> StripsCheck:
    """Encode and decode an image [1, C, H, W] whole, and with every map in `NUM_STRIPS` strips.

    Raises:
        ValueError: The autoencoder can't be run in strips, or not at this size.
    """
    model = family.model
    image = image.to(family.device, family.dtype)
    latents = family.encode_latent(image).mean.to(family.dtype)
    return StripsCheck(
        width=image.shape[3],
        height=image.shape[2],
        latent_error=_error(model.encoder, image) if family.has_encoder else None,
        picture_error=_error(model.decoder, _input_of_decoder(family, latents)),
    )


def _input_of_decoder(family: Family, latents: Tensor) -> Tensor:
    convolution = getattr(family.model, "post_quant_conv", None)
    return latents if convolution is None else convolution(latents)


def _error(half: torch.nn.Module, given: Tensor) -> float:
    program = make_program(half)
    height, width = given.shape[2:]
    sizes = program.sizes(height, width)
    layout = Layout(
        tiers=["device"] * len(program.channels),
        rows=[-(-sizes[step.target][0] // NUM_STRIPS) for step in program.passes],
    )
    whole = half(given)
    strips = Execution(program, layout, height=height, width=width, device=given.device)(given)
    return float((strips - whole).abs().max() / (whole.max() - whole.min()))
