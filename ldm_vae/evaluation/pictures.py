"""Single images of an evaluation: the figures of each, and pictures of a few, for the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from ldm_vae.config.views import View
from ldm_vae.images.evaluation import EvaluationBatch, spread_indices
from ldm_vae.images.transforms import middle_box, to_shown
from ldm_vae.metrics.latents import LatentSummary
from ldm_vae.metrics.spectrum import cosine_power, radial_power
from ldm_vae.system.files import naming
from ldm_vae.system.pixels import from_pixels, to_pixels
from ldm_vae.system.strict_json import dump_json

PICTURES, FIGURES = "pictures", "per_picture.jsonl"
MAX_SIDE = 768
"""Of a larger picture the middle of so many pixels a side is kept."""
STANDARD_DEVIATIONS = 3
"""So far from a latent channel's mean, in its standard deviations, lie black and white in its picture."""


@dataclass(frozen=True, kw_only=True)
class KeptPicture:
    """A picture in its own pixels, and what each autoencoder makes of it."""

    box: tuple[int, int, int, int]
    """Left, top, right and bottom of what is kept, in pixels of the whole."""
    images: list[Image.Image]
    """The original, then the reconstructions."""
    latents: list[Tensor]
    """Means of the posteriors, each [c, h, w], of the part that is kept."""


@dataclass(frozen=True, kw_only=True)
class PictureFigures:
    """What was measured on one picture."""

    name: str
    size: tuple[int, int]
    """Width and height, as it was reconstructed."""
    figures: list[dict[str, float]]
    """One an autoencoder, by the metrics' names."""


@dataclass(kw_only=True)
class PictureLog:
    """Figures by image of one process, and the pictures that may be kept; `merge` takes in those of the others.

    Half of the pictures that are kept are spread over the data. The others are those of the lowest PSNR: of each
    autoencoder in turn its worst, until there are enough. They are the same for every number of processes.
    """

    indices: Sequence[int]
    """The images that are measured, by all processes."""
    num_kept: int
    factor: int
    """Sides of what is cut from a large picture are multiples of this."""
    view: View | None = None
    """Which channels the pictures show."""
    rows: dict[int, PictureFigures] = field(default_factory=dict)
    kept: dict[int, KeptPicture] = field(default_factory=dict)
    _worst: list[list[int]] = field(default_factory=list)
    """For each autoencoder the images of the lowest PSNR, as many as are kept."""

    @torch.no_grad()
    def add(
        self,
        batch: EvaluationBatch,
        columns: Sequence[Tensor],
        means: Sequence[Tensor],
        scores: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Add a batch.

        Args:
            batch: Which images it holds.
            columns: What they are compared by, [B, C, H, W] in [-1, 1]: themselves, then what each autoencoder made.
            means: The latents of each autoencoder, [B, c, h, w].
            scores: The values of each autoencoder's metrics, [B] by name.
        """
        values = [{name: score.tolist() for name, score in each.items()} for each in scores]
        height, width = columns[0].shape[-2:]
        for row, (index, name) in enumerate(zip(batch.indices, batch.names, strict=True)):
            figures = [{metric: numbers[row] for metric, numbers in each.items()} for each in values]
            self.rows[index] = PictureFigures(name=name, size=(width, height), figures=figures)
        self._rank(batch.indices)
        wanted = self._wanted()
        for row, index in enumerate(batch.indices):
            if index in wanted:
                images, latents = ([each[row] for each in whole] for whole in (columns, means))
                self.kept[index] = _keep(images, latents, factor=self.factor, view=self.view)
        self.kept = {index: picture for index, picture in self.kept.items() if index in wanted}

    def merge(self, parts: Iterable[PictureLog]) -> None:
        """Take in what all processes have, and choose the pictures."""
        for part in parts:
            self.take(part)
        self.choose()

    def take(self, part: PictureLog) -> None:
        """Take in what another process has."""
        self.rows |= part.rows
        self.kept |= part.kept
        self._rank([index for ranked in part._worst for index in ranked])
        wanted = self._wanted()
        self.kept = {index: picture for index, picture in self.kept.items() if index in wanted}

    def choose(self) -> None:
        """Choose the pictures, once all is taken in."""
        chosen = self._spread() & self.rows.keys()
        for ranks in zip(*self._worst, strict=True):
            for index in ranks:
                if len(chosen) < self.num_kept:
                    chosen.add(index)
        self.kept = {index: self.kept[index] for index in sorted(chosen)}

    def empty(self) -> PictureLog:
        """Return a log of the same images that has taken none of them."""
        return PictureLog(indices=self.indices, num_kept=self.num_kept, factor=self.factor, view=self.view)

    def _wanted(self) -> set[int]:
        return self._spread() | {index for ranked in self._worst for index in ranked}

    def _spread(self) -> set[int]:
        half = self.num_kept - self.num_kept // 2
        return {self.indices[i] for i in spread_indices(len(self.indices), num_images=half)}

    def _rank(self, new: Sequence[int]) -> None:
        """Put images into the lists of the worst."""
        if new:
            count = len(self.rows[new[0]].figures)
            before = self._worst or [[] for _ in range(count)]
            self._worst = [
                sorted({*ranked, *new}, key=partial(self._badness, number=number))[: self.num_kept]
                for number, ranked in enumerate(before)
            ]

    def _badness(self, index: int, *, number: int) -> tuple[float, int]:
        """Return what images are sorted by: PSNR, without a number before all others."""
        psnr = self.rows[index].figures[number]["psnr"]
        return -math.inf if math.isnan(psnr) else psnr, index


def _keep(images: Sequence[Tensor], latents: Sequence[Tensor], *, factor: int, view: View | None) -> KeptPicture:
    """Return a picture and its reconstructions, [C, H, W], and its latents, cut to what is kept."""
    height, width = images[0].shape[-2:]
    largest = max(MAX_SIDE // factor, 1) * factor
    cut = (min(width, largest), min(height, largest))
    left, top, _, _ = (side // factor * factor for side in middle_box((width, height), cut=cut))
    box = (left, top, left + cut[0], top + cut[1])

    def part(whole: Tensor) -> Tensor:
        """Return what lies in the box, of a picture or of latents, one pixel of which covers several."""
        covered = height // whole.shape[-2]
        left, top, right, bottom = (side // covered for side in box)
        return whole[:, top:bottom, left:right].float().cpu().clone()

    return KeptPicture(
        box=box,
        images=[to_shown(part(each), view) for each in images],
        latents=[part(each) for each in latents],
    )


def write_pictures(
    folder: Path, log: PictureLog, *, resolution: int | None, latents: Sequence[LatentSummary], perceptual: str | None
) -> dict[str, Any]:
    """Write a line of figures for each image, and the pictures that are kept, into an evaluation's folder.

    Lines are added to those of other sizes. The pictures are lossless WebP, those of latents grey PNG with a channel
    beside the other.

    Args:
        folder: The evaluation's folder.
        log: Merged over all processes.
        resolution: Side of the pictures; None for whole ones.
        latents: Each autoencoder's statistics, by which the pictures of latents are normalised.
        perceptual: Name of the perceptual distance.

    Returns:
        For metrics.json, which pictures there are and the power of their spatial frequencies.
    """
    where = folder / PICTURES
    where.mkdir(exist_ok=True)
    size = "whole" if resolution is None else str(resolution)
    lines = []
    for index, row in sorted(log.rows.items()):
        kept = log.kept.get(index)
        line: dict[str, Any] = {"resolution": resolution, "index": index, "name": row.name, "size": row.size}
        line["kept"] = None if kept is None else {"box": kept.box}
        line["figures"] = [_named(figures, perceptual=perceptual) for figures in row.figures]
        lines.append(dump_json(line) + "\n")
    with naming(folder / FIGURES), open(folder / FIGURES, "a", encoding="utf-8") as file:
        file.writelines(lines)
    for index, kept in log.kept.items():
        stem = f"{size}-{index:06d}"
        for column, image in enumerate(kept.images):
            name = "original" if column == 0 else str(column - 1)
            path = where / f"{stem}-{name}.webp"
            with naming(path):
                image.save(path, lossless=True, exact=True, quality=50, method=2)
        for number, (latent, summary) in enumerate(zip(kept.latents, latents, strict=True)):
            path = where / f"{stem}-{number}-latent.png"
            with naming(path):
                draw_latent(latent, summary).save(path, optimize=True)
    return {"resolution": resolution, "kept": list(log.kept), "spectra": _spectra(list(log.kept.values()))}


def _named(figures: dict[str, float], *, perceptual: str | None) -> dict[str, float]:
    return {(perceptual or name) if name == "perceptual" else name: value for name, value in figures.items()}


def draw_latent(latent: Tensor, summary: LatentSummary) -> Image.Image:
    """Return the channels of a latent [c, h, w] beside each other, in grey: the channel's mean in the middle."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (summary.channel_mean, summary.channel_std))
    levels = (latent - mean) / std.clamp(min=1e-12) / STANDARD_DEVIATIONS
    pixels = to_pixels(levels.nan_to_num(0.0)).byte()
    return Image.fromarray(torch.cat(list(pixels), dim=1).numpy())


def _spectra(pictures: Sequence[KeptPicture]) -> dict[str, Any] | None:
    """Return the mean power in rings of rising frequency, of originals and of each autoencoder's reconstructions."""
    if not pictures:
        return None
    sums: list[Tensor] = []
    for picture in pictures:
        columns = [_power(image) for image in picture.images]
        sums = [total + power for total, power in zip(sums, columns, strict=True)] if sums else columns
    original, *reconstructions = [(total / len(pictures)).tolist() for total in sums]
    return {"original": original, "reconstructions": reconstructions}


def _power(image: Image.Image) -> Tensor:
    """Return the mean power of a picture's channels in [-1, 1] in rings, [NUM_BINS]; 0 for an empty ring."""
    values = from_pixels(pil_to_tensor(image))
    return radial_power(cosine_power(values)).mean(dim=0).nan_to_num(0.0)
