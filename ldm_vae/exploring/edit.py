"""`ldm-vae explore edit`: a collection's pictures changed along the direction that examples give."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.commands.explore import ExploreEditOptions
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import require
from ldm_vae.evaluation.grid import SEEN_SIDE, save_grid
from ldm_vae.exploring.batches import PictureBatches
from ldm_vae.exploring.codec import FastCodec, open_codec
from ldm_vae.exploring.directions import MeanLatent, edit_image
from ldm_vae.exploring.pictures import PictureWriting, read_picture, told_size
from ldm_vae.exploring.results import Exploration, write_record
from ldm_vae.images.given import cut_middle
from ldm_vae.models.bottlenecks.quantised import Quantised
from ldm_vae.system.output_kinds import EXPLORATION
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.telling import counted
from ldm_vae.system.tensors import write_tensors

_SHOWN = 8
_PICTURES = "pictures"
_DIRECTION = "direction"


def edit(options: ExploreEditOptions) -> Exploration:
    """Change pictures along the direction between two folders of examples, and write them.

    Raises:
        ValueError: In one line, naming the option, for what a user can mend.
    """
    output = OutputFolder(options.output, kind=EXPLORATION)
    output.check(overwrite=options.overwrite)
    codec = open_codec(options, options)
    work = _Edit(options, codec)
    towards, away_from = work.mean("towards"), work.mean("away_from")
    direction = (towards.value() - away_from.value()).float()
    require(
        bool(direction.any()),
        f"<towards> {options.towards} and <away_from> {options.away_from} have the same mean latent, so there is no "
        f"direction between them; name other examples",
    )
    with output.whole(overwrite=options.overwrite) as folder:
        work.run(direction, folder)
        write_tensors(folder / f"{_DIRECTION}.safetensors", {_DIRECTION: direction})
        record = {
            "direction": {
                "kind": options.direction,
                "shape": list(direction.shape),
                "length": float(direction.norm()),
            },
            "examples": {"towards": towards.count, "away_from": away_from.count},
            "pictures": work.lines,
            "skipped": [asdict(skip) for skip in work.skipped],
        }
        write_record(folder, "edit", record, settings=asdict(options), codec=codec)
    told = f"{counted(len(work.lines), 'picture')} changed along the difference of the mean latents of "
    told += f"{counted(towards.count, 'example')} and {away_from.count:,}"
    told += ", inside the mask" if options.mask is not None or options.box else ""
    if isinstance(codec.family.bottleneck, Quantised):
        told += ", each position taken to its nearest code"
    return Exploration(output=output.path, told=told, skipped=work.skipped)


class _Edit:
    """An edit at work; pictures, examples and mask are opened before anything is computed."""

    def __init__(self, options: ExploreEditOptions, codec: FastCodec) -> None:
        self.options, self.codec = options, codec
        self._batches = {
            name: PictureBatches(options, codec, field=name, resolution=options.resolution, all_of=name != "data")
            for name in ("data", "towards", "away_from")
        }
        self._mask = None if options.mask is None else self._read_mask(options.mask)
        self.lines: list[dict[str, Any]] = []

    @property
    def skipped(self) -> list[Any]:
        """Pictures that couldn't be read."""
        return [skip for batches in self._batches.values() for skip in batches.skipped]

    def mean(self, name: str) -> MeanLatent:
        """Return the mean latent of examples."""
        mean = MeanLatent(kind=self.options.direction)
        for _, images in self._batches[name]:
            mean.add(self.codec.encode(images)[0])
        return mean

    def run(self, direction: Tensor, folder: Path) -> None:
        """Write what becomes of each picture."""
        options, data = self.options, self._batches["data"]
        writing = PictureWriting(channels=self.codec.family.out_channels, rules=options)
        stems = data.stems()
        shown: list[list[Image.Image]] = []
        for batch, images in data:
            for index, name, image in zip(batch.indices, batch.names, images, strict=True):
                made = edit_image(self.codec, image, direction, strengths=options.strength, mask=self._region(image))
                ends = ["reconstruction", *(f"{strength:+g}" for strength in options.strength)]
                files = [f"{_PICTURES}/{stems[index]}-{end}{writing.suffix}" for end in ends]
                for file, each in zip(files, made, strict=True):
                    writing.write(folder / file, each)
                self.lines.append({"source": name, "files": files})
                if len(shown) < _SHOWN:
                    shown.append([writing.shown(each) for each in (image, *made)])
        titles = ["original", "reconstruction", *(f"{strength:+g}" for strength in options.strength)]
        save_grid(folder / "grid.png", shown, titles=titles, side=SEEN_SIDE)

    def _read_mask(self, path: str) -> Tensor:
        """Return which pixels [H, W] are white in the mask, cut as pictures are."""
        grey = read_picture(path, channels=1, rules=ReadingRules(), field="mask", resolution=self.options.resolution)
        region = cut_middle(grey, factor=self.codec.family.spatial_factor)[0] > 0
        require(bool(region.any()), f"<mask> {path} is nowhere white, so that nothing may change")
        return region

    def _region(self, image: Tensor) -> Tensor | None:
        """Return which pixels [H, W] of a picture may change; None: all."""
        if not self.options.box:
            return self._mask
        left, top, right, bottom = self.options.box
        height, width = image.shape[1:]
        require(
            right <= width and bottom <= height,
            f"<box> is {self.options.box}, and a picture has {told_size(image)} pixels",
        )
        region = torch.zeros(height, width, dtype=torch.bool)
        region[top:bottom, left:right] = True
        return region
