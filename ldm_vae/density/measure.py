"""One pass over pictures that gives each one's bounds, whole over all processes.

Under `accelerate launch` or `torchrun` each process takes every P-th picture. All that is random is a function of
(seed, picture), so the figures depend neither on P nor on batches, but for the rounding of convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ldm_vae.density.autoencoder import DensityModel
from ldm_vae.density.bounds import DensityBounds, density_bounds
from ldm_vae.evaluation.reading import ImagePass, ImageReader, MeasuredImages, merge_readings
from ldm_vae.system.pixels import LEVELS_PER_UNIT, to_pixels
from ldm_vae.system.randomness import sample_rng


@dataclass(frozen=True, kw_only=True)
class PictureDensity:
    """What was measured on one picture."""

    index: int
    """Its number in the data."""
    name: str
    size: tuple[int, int]
    """Width and height, as it was measured."""
    bits: dict[str, float]
    """Bits per dimension: `elbo` and `iwae`, upper bounds on those of the picture's probability, `distortion` and
    `rate`."""


@dataclass(frozen=True, kw_only=True)
class MeasuredDensities:
    """The pictures of a set, in their order."""

    images: MeasuredImages
    pictures: list[PictureDensity]


def measure_densities(
    model: DensityModel,
    images: ImagePass,
    *,
    num_samples: int,
    seed: int,
) -> MeasuredDensities:
    """Bound the log-density of pictures of 8 bits, in float32 on the model's device.

    Args:
        model: The autoencoder and its likelihood.
        images: Which pictures; so many latents as are a batch are decoded at once, of pictures of one shape. Latents
            of others are decoded one by one.
        num_samples: Latents for each picture.
        seed: Of all that is random.

    Raises:
        ValueError: A picture can't be read, where the pass is strict.
    """
    family = model.family
    reader = ImageReader.of(images)
    rows: list[PictureDensity] = []
    for batch in images.batches(title="densities"):
        levels = reader.read(batch)
        if levels is None:
            continue
        values = levels if model.kind == "logistic" else dequantised(levels, batch.indices, seed=seed)
        height, width = levels.shape[-2:]
        noise = posterior_noise(
            batch.indices,
            shape=(family.latent_channels, height // family.spatial_factor, width // family.spatial_factor),
            num_samples=num_samples,
            at_once=max(1, images.batch_size // len(levels)) if images.dataset.has_one_shape else 1,
            seed=seed,
        )
        values = values.to(family.device).contiguous(memory_format=torch.channels_last)
        bounds = density_bounds(family, values, kind=model.kind, logvar=model.record.logvar, noise=noise)
        bits = bits_per_dimension(bounds, num_elements=levels[0].numel())
        for row, (index, name) in enumerate(zip(batch.indices, batch.names, strict=True)):
            figures = {figure: value[row] for figure, value in bits.items()}
            rows.append(PictureDensity(index=index, name=name, size=(width, height), bits=figures))
    reader, _ = merge_readings(reader, [])
    everyones: list[PictureDensity] = [row for part in gather_object([rows]) for row in part]
    return MeasuredDensities(images=reader.summary(), pictures=sorted(everyones, key=lambda row: row.index))


def dequantised(images: Tensor, indices: Sequence[int], *, seed: int) -> Tensor:
    """Return pictures [B, C, H, W] of 8 bits with uniform noise of a level's width, in [-1 - 1/255, 1 + 1/255)."""
    shape = images.shape[1:]
    noise = [sample_rng(i, seed=seed, stream="density/levels").random(shape, dtype=np.float32) for i in indices]
    levels = to_pixels(images) + (torch.from_numpy(np.stack(noise)) - 0.5)
    return levels / LEVELS_PER_UNIT - 1


def posterior_noise(
    indices: Sequence[int], *, shape: Sequence[int], num_samples: int, at_once: int, seed: int
) -> Iterator[Tensor]:
    """Yield standard normal noise [B, n, c, h, w], n at most `at_once`, until there are `num_samples` of each picture.

    Sample k of a picture is a function of (seed, picture, k), however many are drawn at once.
    """
    generators = [sample_rng(index, seed=seed, stream="density/noise") for index in indices]
    for start in range(0, num_samples, at_once):
        count = min(at_once, num_samples - start)
        drawn = [rng.standard_normal((count, *shape), dtype=np.float32) for rng in generators]
        yield torch.from_numpy(np.stack(drawn))


def bits_per_dimension(bounds: DensityBounds, *, num_elements: int) -> dict[str, list[float]]:
    """Return bounds in bits per dimension of pictures of `num_elements`, where less is better."""
    nats = {"elbo": -bounds.elbo, "iwae": -bounds.iwae, "distortion": bounds.distortion, "rate": bounds.rate}
    return {name: (value / (num_elements * math.log(2))).tolist() for name, value in nats.items()}
