"""Interventions: changes of latents before they are decoded, and of the images to compare the reconstruction with."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.config.names import LatentNoise
from ldm_vae.models.resizing import scaling_matrix
from ldm_vae.system.float64 import in_float64

BLOCK = 8  # side of the blocks of `LowPass`

Drawn = Mapping[str, "Tensor | float"]


def transformed(pictures: Tensor, *, size: tuple[int, int], rotation: Tensor, mirror: Tensor) -> Tensor:
    """Scale pictures or latents to a size, mirror some of them left to right, then turn each by quarter turns.

    Scaling is bilinear with antialiasing, as `F.interpolate(..., antialias=True)` has it. It is computed as two
    products of matrices in float32: their gradient adds in a fixed order on every device.

    Args:
        pictures: [B, C, H, W].
        size: New (height, width), in pixels.
        rotation: [B], quarter turns counter-clockwise, 0 to 3; 0 or 2 of what isn't square.
        mirror: [B], bool.

    Returns:
        [B, C, *size], float32, channels_last.
    """
    with torch.autocast(pictures.device.type, enabled=False):
        scaled = pictures.float()
        if pictures.shape[-2:] != size:
            rows, columns = (
                scaling_matrix(old, new, pictures.device) for old, new in zip(pictures.shape[-2:], size, strict=True)
            )
            scaled = rows @ scaled @ columns.T
    which = (slice(None), None, None, None)
    scaled = torch.where(mirror[which], scaled.flip(-1), scaled)
    turned = scaled
    for quarters in (1, 2, 3) if size[0] == size[1] else (2,):
        turned = torch.where((rotation == quarters)[which], torch.rot90(scaled, quarters, (-2, -1)), turned)
    return turned.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """One transform of an update: the same scale for all images, a rotation and a mirroring for each."""

    scale: float
    rotation: Tensor
    mirror: Tensor
    factor: int
    """Side of the square of image pixels that one latent pixel stands for."""

    @classmethod
    def of(cls, draws: Drawn, *, scale: str, factor: int) -> Transform | None:
        """Return what was drawn, where the update has the scale of that name."""
        if scale not in draws:
            return None
        rotation, mirror = draws["rotation"], draws["mirror"]
        assert isinstance(rotation, Tensor)
        assert isinstance(mirror, Tensor)
        return cls(scale=float(draws[scale]), rotation=rotation, mirror=mirror, factor=factor)

    def of_latents(self, latents: Tensor) -> Tensor:
        """Return transformed latents, [B, c, h', w'] of [B, c, h, w]."""
        height, width = latents.shape[-2:]
        return self._moved(latents, size=(self._side(height), self._side(width)))

    def of_images(self, images: Tensor) -> Tensor:
        """Return transformed images, [B, C, H', W'] of [B, C, H, W]; H' is h' times the factor."""
        height, width = (self.factor * self._side(side // self.factor) for side in images.shape[-2:])
        return self._moved(images, size=(height, width))

    def _side(self, latent_side: int) -> int:
        return max(1, round(self.scale * latent_side))

    def _moved(self, pictures: Tensor, *, size: tuple[int, int]) -> Tensor:
        return transformed(pictures, size=size, rotation=self.rotation, mirror=self.mirror)


@dataclass(frozen=True, kw_only=True)
class Equivariance:
    """In updates with an `eq_scale`, transformed latents are decoded for the images transformed alike.

    Kouzelis et al. 2025, "EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image Modeling",
    equation 4.
    """

    factor: int

    def __call__(self, z: Tensor, images: Tensor, draws: Drawn) -> tuple[Tensor, Tensor]:
        """Return latents and images, transformed where it is due."""
        transform = Transform.of(draws, scale="eq_scale", factor=self.factor)
        return (z, images) if transform is None else (transform.of_latents(z), transform.of_images(images))


@dataclass(frozen=True, kw_only=True)
class NoisyLatents:
    """Noise on the latents, of a strength drawn for each image; the images stay as they are."""

    kind: LatentNoise
    """`interpolative`: Yang et al. 2025, "Latent Denoising Makes Good Visual Tokenizers", equation 2. `additive`: as
    the decoder of Zheng et al. 2025, "Diffusion Transformers with Representation Autoencoders", is trained."""
    strength: float

    def __call__(self, z: Tensor, images: Tensor, draws: Drawn) -> tuple[Tensor, Tensor]:
        """Return noisy latents, and the images."""
        if "latent_noise" not in draws:
            return z, images
        noise, part = draws["latent_noise"], draws["noise_strength"]
        assert isinstance(noise, Tensor)
        assert isinstance(part, Tensor)
        height, width = z.shape[-2:]
        part = part[:, None, None, None]
        noise = self.strength * part * noise[..., :height, :width]  # of scaled latents, the first corner
        if self.kind == "interpolative":
            return (1 - part) * z + noise, images
        if self.kind == "relative":
            noise = noise * z.detach().std(dim=(1, 2, 3), keepdim=True)
        return z + noise, images


class LowPass:
    """Removes high frequencies of each 8x8 block, in latents and images alike ("Spectrum Matching", arXiv 2603.14645).

    An image with `low_pass` k above 0 loses the coefficients (u, v) with u + v >= 15 - k of its blocks' cosine
    transform; one with 0 stays as it is.
    """

    def __call__(self, z: Tensor, images: Tensor, draws: Drawn) -> tuple[Tensor, Tensor]:
        """Return latents and images with the low frequencies alone."""
        numbers = draws.get("low_pass")
        if numbers is None:
            return z, images
        assert isinstance(numbers, Tensor)
        return _low_pass(z, numbers), _low_pass(images, numbers)


def _low_pass(pictures: Tensor, numbers: Tensor) -> Tensor:
    """Return pictures [B, C, H, W], whose sides are multiples of 8, less the frequencies that `numbers` [B] remove."""
    size, channels, height, width = pictures.shape
    device = pictures.device
    with torch.autocast(device.type, enabled=False):
        matrix = _cosines(device)
        blocks = pictures.float().reshape(size, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        blocks = blocks.transpose(3, 4)  # [B, C, rows, columns, 8, 8]
        coefficients = matrix @ blocks @ matrix.T
        frequency = torch.arange(BLOCK, device=device)
        kept = (frequency[:, None] + frequency)[None] < torch.where(numbers > 0, 15 - numbers, 15)[:, None, None]
        blocks = matrix.T @ (coefficients * kept[:, None, None, None]) @ matrix
    low = blocks.transpose(3, 4).reshape(size, channels, height, width)
    unchanged = (numbers == 0)[:, None, None, None]
    return torch.where(unchanged, pictures, low).contiguous(memory_format=torch.channels_last)


@functools.cache
def _cosines(device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II as a matrix [8, 8] with a row for each frequency."""
    position = in_float64(torch.arange(BLOCK))
    matrix = torch.cos(math.pi / BLOCK * position[:, None] * (position + 0.5)) * math.sqrt(2 / BLOCK)
    matrix[0] *= math.sqrt(0.5)
    return matrix.float().to(device)
