"""`ldm-vae explore interpolate`: the way from one picture to another through the latent space."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.commands.explore import ExploreInterpolateOptions
from ldm_vae.config.names import LatentPath
from ldm_vae.config.rules import require, require_one_of
from ldm_vae.exploring.codec import Codec, PlainCodec, decode_finite, open_codec
from ldm_vae.exploring.pictures import PictureWriting, cut_alike, read_picture, save_animation, strip, told_cut
from ldm_vae.exploring.results import Exploration, write_record
from ldm_vae.images.given import Picture, to_image_tensor, to_picture
from ldm_vae.models.bottlenecks.quantised import Quantised
from ldm_vae.models.families.family import DiffusersModel
from ldm_vae.system.float64 import in_float64
from ldm_vae.system.output_kinds import EXPLORATION
from ldm_vae.system.outputs import OutputFolder

_PARALLEL = 1e-6
"""Sine of an angle below which two directions are taken for one."""


def interpolate_latents(first: Tensor, second: Tensor, *, steps: int, path: LatentPath) -> Tensor:
    """Return latents on the way between two.

    `linear` is (1 - t) a + t b. `spherical` turns a's direction into b's at even speed (slerp; Shoemake 1985,
    "Animating rotation with quaternion curves") while the length changes evenly: with the angle w between a and b, the
    direction is (sin((1 - t) w) a / |a| + sin(t w) b / |b|) / sin w. Samples of a Gaussian of many dimensions have
    nearly one length, which the straight line leaves halfway (White 2016, "Sampling generative networks").

    Args:
        first: a, of any shape; the model's own latents, whose origin is the prior's mean.
        second: b, of the same shape.
        steps: Number of latents; the first is a and the last b, bit by bit.
        path: Which way.

    Returns:
        [steps, ...], float32.

    Raises:
        ValueError: Shapes differ, there is no such path, or `spherical` has no way since a and b are opposite, or one
            of them is 0.
    """
    require_one_of(LatentPath, path=path)
    require(first.shape == second.shape, f"latents of shapes {list(first.shape)} and {list(second.shape)}")
    require(steps >= 2, f"<steps> is {steps}; it can't be below 2")
    a, b = in_float64(first), in_float64(second)
    along = _slerp if path == "spherical" else torch.lerp
    inner = [along(a, b, step / (steps - 1)).float().to(first.device) for step in range(1, steps - 1)]
    return torch.stack([first.float(), *inner, second.float()])


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    length_a, length_b = a.norm(), b.norm()
    require(
        bool(length_a > 0 and length_b > 0), "<path> spherical has no way from or to a latent that is 0; take linear"
    )
    unit_a, unit_b = a / length_a, b / length_b
    # of the chord's half and its complement's, which small angles don't round off as the cosine does
    angle = 2 * torch.atan2((unit_a - unit_b).norm(), (unit_a + unit_b).norm())
    sine = torch.sin(angle)
    if sine < _PARALLEL:
        opposite = bool(angle > 1)
        require(not opposite, "<path> spherical has many ways between opposite latents; take linear")
        return torch.lerp(a, b, t)
    direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / sine
    return direction * torch.lerp(length_a, length_b, t)


def interpolate_pictures(
    autoencoder: DiffusersModel,
    first: Picture,
    second: Picture,
    *,
    steps: int = 9,
    path: LatentPath = "spherical",
    resolution: int | None = None,
) -> list[Image.Image | np.ndarray]:
    """Return pictures on the way between two: the latents between those of both (`interpolate_latents`), decoded.

    >>> from PIL import Image
    >>> from ldm_vae import interpolate_pictures, load_autoencoder
    >>> autoencoder = load_autoencoder("export")
    >>> way = interpolate_pictures(autoencoder, Image.open("photo.png"), Image.open("another.png"), steps=5)
    >>> len(way)
    5

    Args:
        autoencoder: On any device, in any floating-point type. The nearest codes are decoded where it has a codebook.
        first: Picture to begin with, of any kind that `encode_images` takes.
        second: Picture to end with.
        steps: Number of pictures. The first and the last are the reconstructions of both.
        path: `linear`, or `spherical` about the origin of the latent space.
        resolution: Resize the short sides to so many pixels and crop the middles to a square (8-bit pictures only);
            None: cut both about their middles to the largest size that both have, a multiple of the model's factor.

    Raises:
        ValueError: In one line, for pictures that don't fit the model.
    """
    codec = PlainCodec.of(autoencoder)
    channels = codec.family.in_channels
    images = [to_image_tensor(picture, channels=channels, resolution=resolution) for picture in (first, second)]
    ends = _ends(codec, cut_alike(images, multiple=codec.family.spatial_factor))
    return [to_picture(image) for image in _decoded(codec, interpolate_latents(*ends, steps=steps, path=path))]


def interpolate(options: ExploreInterpolateOptions) -> Exploration:
    """Write the way between two pictures as a strip and an animation, a pair for each path.

    Raises:
        ValueError: In one line, naming the option, for what a user can mend.
    """
    output = OutputFolder(options.output, kind=EXPLORATION)
    output.check(overwrite=options.overwrite)
    codec = open_codec(options, options)
    named = {"first": options.first, "second": options.second}
    whole = [
        read_picture(
            path, channels=codec.family.in_channels, rules=options, field=field, resolution=options.resolution
        )
        for field, path in named.items()
    ]
    images = cut_alike(whole, multiple=codec.family.spatial_factor)
    ends = _ends(codec, images)
    writing = PictureWriting(channels=codec.family.out_channels, rules=options)
    paths: tuple[LatentPath, ...] = ("linear", "spherical") if options.path == "both" else (options.path,)
    with output.whole(overwrite=options.overwrite) as folder:
        for path in paths:
            latents = interpolate_latents(*ends, steps=options.steps, path=path)
            frames = [writing.shown(image) for image in _decoded(codec, latents)]
            strip(frames).save(folder / f"{path}.png")
            save_animation(folder / f"{path}.webp", frames, fps=options.fps)
        sizes = [told_cut(path, *pair) for path, *pair in zip(named.values(), whole, images, strict=True)]
        write_record(folder, "interpolate", _record(ends, sizes, paths), settings=asdict(options), codec=codec)
    codes = ", each position taken to its nearest code" if isinstance(codec.family.bottleneck, Quantised) else ""
    files = " and ".join(f"{path}.png, {path}.webp" for path in paths)
    told = f"{options.steps} pictures from {sizes[0]} to {sizes[1]}{codes}: {files}"
    return Exploration(output=output.path, told=told)


def _record(ends: tuple[Tensor, Tensor], sizes: list[str], paths: tuple[LatentPath, ...]) -> dict[str, Any]:
    a, b = (in_float64(end) for end in ends)
    return {
        "first": sizes[0],
        "second": sizes[1],
        "paths": list(paths),
        "latent_shape": list(a.shape),
        "lengths": [float(a.norm()), float(b.norm())],
        "cosine": float((a * b).sum() / (a.norm() * b.norm())),
    }


def _ends(codec: Codec, images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the means of two pictures' posteriors, each [c, h, w], on the CPU."""
    first, second = (codec.encode(image[None])[0][0].float().cpu() for image in images)
    return first, second


def _decoded(codec: Codec, latents: Tensor) -> list[Tensor]:
    """Decode latents one by one, so that a picture is the same however many there are."""
    return [decode_finite(codec, latent[None])[0] for latent in latents]
