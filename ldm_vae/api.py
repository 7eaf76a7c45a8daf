"""The surface for Python: PIL, numpy or tensors in, PIL out.

From pictures to latents and back, and what `ldm_vae.exploring` does with a latent space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.rules import require_one_of
from ldm_vae.exploring.augment import augment_pictures
from ldm_vae.exploring.directions import edit_pictures, latent_direction
from ldm_vae.exploring.interpolate import interpolate_latents, interpolate_pictures
from ldm_vae.exploring.neighbours import nearest_latents
from ldm_vae.exploring.sample import sample_pictures
from ldm_vae.images.given import Picture, cut_middle, to_image_tensor, to_picture, unbatched
from ldm_vae.models.exact import within_memory
from ldm_vae.models.families import family_of
from ldm_vae.models.families.family import DiffusersModel

__all__ = [
    "augment_pictures",
    "decode_latents",
    "edit_pictures",
    "encode_images",
    "interpolate_latents",
    "interpolate_pictures",
    "latent_direction",
    "nearest_latents",
    "sample_pictures",
]

Normalize: TypeAlias = Literal["scaling", "none"]


@torch.no_grad()
def encode_images(
    autoencoder: DiffusersModel,
    images: Picture | Sequence[Picture],
    *,
    resolution: int | None = None,
    normalize: Normalize = "scaling",
    sample: bool = False,
    generator: torch.Generator | None = None,
    batch_size: int = 8,
    memory_gib: float | None = None,
) -> Tensor:
    """Encode pictures into latents, by default those that diffusers' pipelines denoise.

    >>> from PIL import Image
    >>> from ldm_vae import decode_latents, encode_images, load_autoencoder
    >>> autoencoder = load_autoencoder("export")
    >>> latents = encode_images(autoencoder, Image.open("photo.png"))
    >>> latents.shape
    torch.Size([1, 4, 24, 36])
    >>> decode_latents(autoencoder, latents)[0].size
    (72, 48)

    Args:
        autoencoder: On any device, in any floating-point type.
        images: One picture or several: PIL images, numpy arrays [H, W] or [H, W, C] or [B, H, W, C], tensors [C, H, W]
            or [B, C, H, W]; uint8 in 0 to 255, or floats in [-1, 1]. PIL images are converted to the autoencoder's
            channels as files are; arrays must have them, but grey ones are repeated to RGB.
        resolution: Resize the short side to so many pixels and crop the middle to a square (8-bit pictures only);
            None: cut around the middle to a multiple of the model's factor.
        normalize: `scaling`: (z - shift) * scale by the model's config; `none`: the model's own latents z.
        sample: Draw from the posterior, where the model has one, instead of taking its mean.
        generator: Of the draws, on the CPU.
        batch_size: Pictures encoded at once.
        memory_gib: The most memory of the device, in GiB beside the weights, that encoding may take; larger pictures
            go through the network strip by strip, with the same result (`enable_exact_tiling`). None: no bound.

    Returns:
        Latents [B, c, h, w], float32, on the autoencoder's device; FLUX.2's are normalised as patches, [B, 4c, h/2,
        w/2].

    Raises:
        ValueError: In one line, for pictures of another range, number of channels or, among themselves, size.
    """
    require_one_of(Normalize, normalize=normalize)
    family = family_of(autoencoder)
    channels, factor = family.in_channels, family.image_multiple
    pictures = [to_image_tensor(picture, channels=channels, resolution=resolution) for picture in unbatched(images)]
    pictures = [cut_middle(picture, factor=factor) for picture in pictures]
    sizes = {tuple(picture.shape[1:]) for picture in pictures}
    if not sizes:
        raise ValueError("images: there are no images to encode")
    if len(sizes) > 1:
        raise ValueError(f"images are of {len(sizes)} sizes; give a resolution, or encode them apart")
    batches = []
    for batch in torch.stack(pictures).split(batch_size):
        with within_memory(autoencoder, memory_gib):
            mean, std = family.encode_moments(batch.to(family.device, family.dtype))
        if sample and std is not None:
            mean = mean + std * torch.randn(mean.shape, generator=generator).to(mean.device)
        batches.append(mean)
    latents = torch.cat(batches)
    if normalize == "none":
        return latents
    return family.normalisation.to(family.device).normalise(latents)


@torch.no_grad()
def decode_latents(
    autoencoder: DiffusersModel,
    latents: Tensor,
    *,
    normalize: Normalize = "scaling",
    batch_size: int = 8,
    memory_gib: float | None = None,
) -> list[Image.Image | np.ndarray]:
    """Decode latents into pictures: what `encode_images` gives, or what a diffusion model denoised.

    >>> import torch
    >>> from ldm_vae import decode_latents, load_autoencoder
    >>> autoencoder = load_autoencoder("export")
    >>> pictures = decode_latents(autoencoder, torch.randn(2, 4, 8, 8))
    >>> [picture.size for picture in pictures]
    [(16, 16), (16, 16)]

    Args:
        autoencoder: On any device, in any floating-point type.
        latents: One or several, [c, h, w] or [B, c, h, w], of any floating-point type.
        normalize: How the latents are normalised, as in `encode_images`.
        batch_size: Latents decoded at once.
        memory_gib: The most memory of the device that decoding may take, as in `encode_images`.

    Returns:
        A picture for each latent, of mode L, RGB or RGBA, or for other channels an array [H, W, C], float32 in [-1,
        1]. Values outside are clamped.

    Raises:
        ValueError: In one line, where the latents don't have this shape, or the pictures hold NaN or infinity.
    """
    require_one_of(Normalize, normalize=normalize)
    batch = latents[None] if latents.ndim == 3 else latents
    family = family_of(autoencoder)
    channels = family.latent_channels * (family.patch_size**2 if normalize == "scaling" else 1)
    if batch.ndim != 4 or batch.shape[1] != channels:
        raise ValueError(
            f"latents have the shape {list(latents.shape)}; [B, {channels}, h, w] is what this model takes"
        )
    batch = batch.to(family.device, torch.float32)
    if normalize == "scaling":
        batch = family.normalisation.to(family.device).restore(batch)
    pictures: list[Image.Image | np.ndarray] = []
    for part in batch.to(family.dtype).split(batch_size):
        with within_memory(autoencoder, memory_gib):
            images = family.decode(part)
        if not images.isfinite().all():
            raise ValueError(
                f"the pictures hold NaN or infinity in {family.dtype}; check the latents, or decode in torch.float32"
            )
        pictures += [to_picture(image) for image in images]
    return pictures
