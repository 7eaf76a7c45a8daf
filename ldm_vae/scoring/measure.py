"""One pass over pictures: what an autoencoder gives away of each, and maps of where it fails.

Under `accelerate launch` or `torchrun` each process takes every P-th batch; the figures don't depend on P, nor on
the batch's size: the posterior's noise is a function of a picture's own pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.names import Compressor
from ldm_vae.config.views import View
from ldm_vae.evaluation.grid import MAX_SIDE
from ldm_vae.evaluation.measure import reconstruct
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.guard import SkippedImage
from ldm_vae.images.transforms import to_shown
from ldm_vae.losses.kl import kl_divergence
from ldm_vae.losses.perceptual import PerceptualDistance
from ldm_vae.metrics.anomaly import error_map, window_peak
from ldm_vae.models.families.family import Family
from ldm_vae.models.families.parts import Reconstruction
from ldm_vae.models.precision import autocast
from ldm_vae.panel.sums import Batch, PanelImages, gather, panel_batches, pixel_digests
from ldm_vae.scoring.complexity import complexity_bits
from ldm_vae.scoring.maps import reduced, small
from ldm_vae.system.float64 import float64_tensor, float64_zeros, in_float64
from ldm_vae.system.pixels import from_pixels, to_levels, to_pixels
from ldm_vae.system.randomness import sample_rng

NOISE_SEED = 0
MAX_MAP_SIDE = 1024
"""The longest side of the maps that are kept."""
Rank: TypeAlias = Callable[[Mapping[str, float]], float]
"""From a picture's figures to what it is put in order by, the highest first."""


@dataclass(frozen=True, kw_only=True)
class How:
    """What is measured, and how."""

    bf16: bool
    window: int
    """Side of the windows whose means are compared for a map's peak, in pixels."""
    samples: int
    """Samples of the posterior for each picture."""
    compressor: Compressor
    rounded: bool
    """Whether pictures are of 8 bits, and not numbers in a declared range."""
    view: View | None
    """Which channels pictures show."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured on one picture."""

    name: str
    size: tuple[int, int]
    """Width and height, as it was reconstructed."""
    digest: bytes
    """SHA-256 of its pixels."""
    values: dict[str, float]
    """By name: `pixel`, `pixel_peak`, `perceptual`, `perceptual_peak`, `squared_error`, `kl_bits`, `complexity_bits`,
    those of them that there are."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A picture with its reconstruction and its maps."""

    original: Image.Image
    """Of at most `MAX_SIDE` pixels a side, as pictures are shown."""
    reconstruction: Image.Image
    maps: dict[str, Tensor]
    """float16 [H, W] by name: `pixel`, the errors' root mean square over channels in levels, and `perceptual`. Where a
    side has more than `MAX_MAP_SIDE` pixels, each cell has the largest error that it covers."""


@dataclass(kw_only=True)
class Measured:
    """What one process measured; after `merge`, what all did."""

    figures: dict[int, Figures] = field(default_factory=dict)
    """By the pictures' numbers."""
    skipped: list[SkippedImage] = field(default_factory=list)
    kept: dict[int, Kept] = field(default_factory=dict)

    def column(self, name: str) -> Tensor:
        """Return a figure of all pictures in the order of their numbers, [n] float64."""
        return float64_tensor([self.figures[i].values[name] for i in sorted(self.figures)])

    def order(self, rank: Rank) -> list[int]:
        """Return the pictures' numbers, the highest first; what is no number comes before all others."""
        return best(self.figures, rank=rank, count=len(self.figures), among=list(self.figures))

    def merge(self) -> Measured:
        """Return what all processes measured; every process gets it."""
        whole = Measured()
        for part in gather(self):
            whole.figures |= part.figures
            whole.skipped += part.skipped
            whole.kept |= part.kept
        whole.skipped.sort(key=lambda skipped: skipped.index)
        return whole


def measure(
    family: Family,
    images: PanelImages,
    collection: ImageCollection,
    *,
    how: How,
    title: str,
    rank: Rank | None = None,
    num_kept: int = 0,
) -> Measured:
    """Measure all pictures, each by itself, and keep maps of those that `rank` puts first.

    Raises:
        ValueError: Where `images.strict`, one of the pictures can't be read.
    """
    own = Measured()
    for batch in panel_batches(images, own.skipped, title=title):
        values, kept = _measure_batch(family, batch, images.perceptual, how=how)
        digests = pixel_digests(batch)
        height, width = batch.images.shape[-2:]
        for row, index in enumerate(batch.indices):
            own.figures[index] = Figures(
                name=collection.name(index), size=(width, height), digest=digests[index], values=values[row]
            )
        if rank is not None:
            chosen = best(own.figures, rank=rank, count=num_kept, among=[*own.kept, *batch.indices])
            fresh = {index: kept(row) for row, index in enumerate(batch.indices) if index in chosen}
            own.kept = {index: own.kept.get(index) or fresh[index] for index in chosen}
    whole = own.merge()
    if rank is not None:
        chosen = best(whole.figures, rank=rank, count=num_kept, among=list(whole.kept))
        whole.kept = {index: whole.kept[index] for index in chosen}
    return whole


def best(figures: Mapping[int, Figures], *, rank: Rank, count: int, among: Sequence[int]) -> list[int]:
    """Return the numbers of the `count` pictures that come first; what is no number comes before all others."""

    def order(index: int) -> tuple[float, int]:
        value = rank(figures[index].values)
        return (-math.inf if math.isnan(value) else -value), index

    return sorted(among, key=order)[:count]


@torch.no_grad()
def _measure_batch(
    family: Family, batch: Batch, perceptual: object, *, how: How
) -> tuple[list[dict[str, float]], Callable[[int], Kept]]:
    """Return each picture's figures, and what makes the `Kept` of a row."""
    images = batch.images.to(family.device)
    made = reconstruct(family, images, bf16=how.bf16)
    before, after = ((to_pixels if how.rounded else to_levels)(values) for values in (images, made.images))
    errors = error_map(before, after)
    columns = {
        "pixel": in_float64(errors).mean(dim=(1, 2)).sqrt(),
        "pixel_peak": window_peak(errors, window=how.window).sqrt(),
    }
    maps = {"pixel": errors.sqrt()}
    if isinstance(perceptual, PerceptualDistance):
        columns["perceptual"], maps["perceptual"] = perceptual.maps(from_pixels(before), from_pixels(after))
        columns["perceptual_peak"] = window_peak(maps["perceptual"], window=how.window)
    if made.std is not None:
        columns |= _bound_parts(family, batch, images, made, how=how)
    pixels = to_pixels(batch.images).byte()
    columns["complexity_bits"] = torch.tensor([complexity_bits(each, compressor=how.compressor) for each in pixels])
    lists = {name: column.tolist() for name, column in columns.items()}

    def kept(row: int) -> Kept:
        pair = (to_shown(each[row].nan_to_num(0.0), how.view) for each in (images, made.images))
        original, reconstruction = (small(picture, side=MAX_SIDE) for picture in pair)
        return Kept(
            original=original,
            reconstruction=reconstruction,
            maps={name: reduced(each[row].float(), side=MAX_MAP_SIDE).half().cpu() for name, each in maps.items()},
        )

    return [{name: values[row] for name, values in lists.items()} for row in range(len(images))], kept


def _bound_parts(family: Family, batch: Batch, images: Tensor, made: Reconstruction, *, how: How) -> dict[str, Tensor]:
    """Return what the ELBO is made of, [B] float64.

    `squared_error` is the mean over elements, and over samples of the posterior, of the squared difference between the
    8-bit picture and the decoded sample, clamped to the levels' range but not rounded, in squared levels. `kl_bits` is
    the posterior's divergence from N(0, 1), in bits an element of the picture.
    """
    assert made.std is not None
    target, total = to_pixels(images), float64_zeros(len(images), device="cpu")
    digests = pixel_digests(batch)
    draws = [
        sample_rng(int.from_bytes(digests[index][:8], "little"), seed=NOISE_SEED, stream="score/noise")
        for index in batch.indices
    ]
    for _ in range(how.samples):
        noise = np.stack([draw.standard_normal(made.mean.shape[1:], dtype=np.float32) for draw in draws])
        z = made.mean + made.std * torch.from_numpy(noise).to(made.mean.device)
        with autocast(images.device, enabled=how.bf16):
            decoded = to_levels(family.decode(z.to(family.dtype)))
        total += in_float64(decoded - target).square().flatten(1).mean(dim=1).cpu()
    divergence = kl_divergence(in_float64(made.mean), 2 * in_float64(made.std).log())
    return {
        "squared_error": total / how.samples,
        "kl_bits": divergence / images[0].numel() / math.log(2),
    }
