"""Directions of the latent space, and pictures changed along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm_vae.config.names import DirectionKind
from ldm_vae.config.rules import require, require_one_of
from ldm_vae.exploring.codec import Codec, PlainCodec, decode_finite
from ldm_vae.exploring.pictures import told_size
from ldm_vae.images.given import Picture, cut_middle, to_image_tensor, to_picture, unbatched
from ldm_vae.models.families.family import DiffusersModel
from ldm_vae.system.float64 import in_float64


@dataclass(kw_only=True)
class MeanLatent:
    """The mean of pictures' latents, each picture counting alike."""

    kind: DirectionKind
    count: int = 0
    total: Tensor | None = None

    def add(self, mean: Tensor) -> None:
        """Add latents [B, c, h, w]."""
        rows = in_float64(mean.cpu())
        rows = rows.mean(dim=(2, 3), keepdim=True) if self.kind == "channel" else rows
        summed = rows.sum(dim=0)
        require(
            self.total is None or self.total.shape == summed.shape,
            "a direction of kind map is for examples of one size; give a <resolution>",
        )
        self.total = summed if self.total is None else self.total + summed
        self.count += len(rows)

    def value(self) -> Tensor:
        """Return the mean, [c, 1, 1] or [c, h, w], float64."""
        assert self.total is not None
        return self.total / self.count


def latent_direction(
    autoencoder: DiffusersModel,
    towards: Picture | Sequence[Picture],
    away_from: Picture | Sequence[Picture],
    *,
    kind: DirectionKind = "channel",
    resolution: int | None = None,
) -> Tensor:
    """Return the difference of the mean latents of examples that have something and of examples that lack it.

    Args:
        autoencoder: On any device, in any floating-point type.
        towards: Pictures that have it, of any kind that `encode_images` takes.
        away_from: Pictures that lack it.
        kind: `channel`: the means over positions too, [c, 1, 1]; `map`: each position's, [c, h, w], for pictures that
            are aligned and of one size.
        resolution: Side that pictures are resized and cropped to, as in `encode_images`.

    Raises:
        ValueError: In one line, for pictures that don't fit.
    """
    require_one_of(DirectionKind, kind=kind)
    codec = PlainCodec.of(autoencoder)
    means = []
    for pictures in (towards, away_from):
        mean = MeanLatent(kind=kind)
        for picture in unbatched(pictures):
            mean.add(codec.encode(_given(codec, picture, resolution=resolution)[None])[0])
        require(mean.count > 0, "a direction needs examples on both sides")
        means.append(mean.value())
    return (means[0] - means[1]).float()


def edit_pictures(
    autoencoder: DiffusersModel,
    images: Picture | Sequence[Picture],
    direction: Tensor,
    *,
    strength: float = 1.0,
    mask: np.ndarray | Tensor | None = None,
    resolution: int | None = None,
) -> list[Image.Image | np.ndarray]:
    """Return pictures changed along a direction of the latent space.

    Args:
        autoencoder: On any device, in any floating-point type. The nearest codes are decoded where it has a codebook.
        images: One picture or several, of any kind that `encode_images` takes.
        direction: [c, 1, 1], or [c, h, w] for pictures of one size; `latent_direction` makes one.
        strength: What the direction is multiplied by.
        mask: Whether a pixel may change, [H, W] of the pictures as they are cut; outside, a picture is its
            reconstruction, unchanged. None: all may.
        resolution: Side that pictures are resized and cropped to, as in `encode_images`; None: they are cut about
            their middles to a multiple of the model's factor.

    Raises:
        ValueError: In one line, for pictures, a direction or a mask that don't fit.
    """
    codec = PlainCodec.of(autoencoder)
    region = None if mask is None else torch.as_tensor(mask).bool()
    edited = []
    for picture in unbatched(images):
        image = _given(codec, picture, resolution=resolution)
        edited.append(to_picture(edit_image(codec, image, direction, strengths=[strength], mask=region)[1]))
    return edited


def edit_image(
    codec: Codec, image: Tensor, direction: Tensor, *, strengths: Sequence[float], mask: Tensor | None
) -> list[Tensor]:
    """Return the reconstruction of a picture, then what each strength makes of it.

    The latent is moved where it covers a pixel that may change. Since decoders look further than that, pixels outside
    are then taken from the reconstruction.

    Args:
        codec: The autoencoder.
        image: [C, H, W] in [-1, 1].
        direction: [c, 1, 1] or [c, h, w].
        strengths: What the direction is multiplied by.
        mask: Whether a pixel may change, [H, W]; None: all may.

    Raises:
        FieldError: Shapes don't fit.
    """
    latent = codec.encode(image[None])[0].cpu()
    require(
        direction.shape in ((*latent.shape[1:2], 1, 1), latent.shape[1:]),
        f"a direction {list(direction.shape)} doesn't fit latents {list(latent.shape[1:])} of a picture",
    )
    move = direction.cpu().float()
    if mask is not None:
        require(
            mask.shape == image.shape[1:],
            f"<mask> covers {mask.shape[-1]}x{mask.shape[0]} pixels and the picture has {told_size(image)}",
        )
        move = move * max_pool2d(mask[None, None].float(), codec.family.spatial_factor)[0]
    reconstruction = decode_finite(codec, latent)[0]
    edited = [decode_finite(codec, latent + strength * move)[0] for strength in strengths]
    if mask is not None:
        edited = [torch.where(mask, each, reconstruction) for each in edited]
    return [reconstruction, *edited]


def _given(codec: Codec, picture: Picture, *, resolution: int | None) -> Tensor:
    """Return a picture as [C, H, W], cut as the autoencoder needs it."""
    image = to_image_tensor(picture, channels=codec.family.in_channels, resolution=resolution)
    return cut_middle(image, factor=codec.family.spatial_factor)
