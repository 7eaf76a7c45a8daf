"""`ldm-vae explore sample`: latents at random, decoded; and the same in Python."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_vae.config.commands.explore import ExploreSampleOptions
from ldm_vae.config.names import Covariance, SampleMethod
from ldm_vae.config.rules import require_divides, require_one_of, require_positive
from ldm_vae.exploring.choosing import LatentSource, SampleRequest, check_method, choose_source
from ldm_vae.exploring.codec import Codec, PlainCodec, decode_finite, open_codec
from ldm_vae.exploring.gaussian import Draw
from ldm_vae.exploring.known import KnownLatents, encoded_latents, folder_latents, tensor_latents
from ldm_vae.exploring.pictures import PictureWriting, mosaic
from ldm_vae.exploring.results import Exploration, write_record
from ldm_vae.images.given import to_picture
from ldm_vae.models.families.family import DiffusersModel
from ldm_vae.system.output_kinds import EXPLORATION
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.progress import progress
from ldm_vae.system.telling import counted

_RESOLUTION = 256
_SHOWN = 64
_WORK = "work"


@dataclass(frozen=True, kw_only=True)
class SampledPictures:
    """Pictures drawn from a latent space."""

    pictures: list[Image.Image | np.ndarray]
    method: str
    """Where latents came from: `prior`, `gaussian`, `codes` or `diffusion`."""
    reason: str
    """In words, with what was measured."""


def sample_pictures(
    autoencoder: DiffusersModel,
    latents: str | Path | Tensor | None = None,
    *,
    count: int = 1,
    method: SampleMethod = "auto",
    covariance: Covariance = "full",
    resolution: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
) -> SampledPictures:
    """Draw pictures from the latent space.

    Args:
        autoencoder: On any device, in any floating-point type.
        latents: What is known of the space: a folder of latents that `encode` wrote, or the model's own latents
            [n, c, h, w]. None: nothing, which leaves the prior.
        count: Number of pictures.
        method: `prior`: N(0, I). `gaussian`: a Gaussian fitted to the latents. `codes`: codes by how often they are
            used. `diffusion`: a small diffusion model trained on the latents, in minutes. `auto`: the prior where the
            latents were measured to follow it, else the Gaussian.
        covariance: Of the Gaussian: of all elements (`full`), or a variance a channel.
        resolution: Side of the pictures where no latents are given.
        steps: Of the diffusion model's training, in place of 1,000.
        seed: Picture j is a function of (seed, j).
        batch_size: Pictures decoded at once.

    Raises:
        ValueError: In one line, where the method and the autoencoder or the latents don't fit.
    """
    require_one_of(SampleMethod, method=method)
    require_one_of(Covariance, covariance=covariance)
    require_positive(count=count, resolution=resolution, steps=steps, batch_size=batch_size)
    codec = PlainCodec.of(autoencoder)
    known = None
    if isinstance(latents, Tensor):
        known = tensor_latents(latents)
    elif latents is not None:
        known = folder_latents(latents, codec, vae=codec.family.class_name())
    request = SampleRequest(method=method, covariance=covariance, steps=steps, seed=seed)
    check_method(method, codec.family)
    with tempfile.TemporaryDirectory() as work:
        source = choose_source(request, codec, known, resolution=resolution or _RESOLUTION, work=Path(work))
        images = _images(source.draw, codec, count=count, seed=seed, batch_size=batch_size)
        pictures = [to_picture(image) for batch in images for image in batch]
    return SampledPictures(pictures=pictures, method=source.method, reason=source.reason)


def sample(options: ExploreSampleOptions) -> Exploration:
    """Draw latents, decode them, and write the pictures.

    Raises:
        ValueError: In one line, naming the option, for what a user can mend.
    """
    output = OutputFolder(options.output, kind=EXPLORATION)
    output.check(overwrite=options.overwrite)
    codec = open_codec(options, options)
    resolution = options.resolution or _RESOLUTION
    request = SampleRequest(
        method=options.method, covariance=options.covariance, steps=options.steps, seed=options.seed
    )
    check_method(options.method, codec.family)
    writing = PictureWriting(channels=codec.family.out_channels, rules=options)
    with output.whole(overwrite=options.overwrite) as folder:
        work = folder / _WORK
        work.mkdir()
        known = None
        if options.latents is not None:
            known = folder_latents(options.latents, codec, vae=options.vae)
        elif options.data is not None:
            require_divides(codec.family.spatial_factor, resolution, name="resolution", whose="the model's factor")
            known = encoded_latents(options, codec, resolution=resolution, work=work)
        source = choose_source(request, codec, known, resolution=resolution, work=work)
        drawn = _images(source.draw, codec, count=options.count, seed=options.seed, batch_size=options.batch_size)
        _write(drawn, folder, writing=writing, count=options.count)
        shutil.rmtree(work)
        write_record(folder, "sample", _record(source, known), settings=asdict(options), codec=codec)
    told = f"{counted(options.count, 'picture')} drawn from {source.reason}"
    return Exploration(output=output.path, told=told, skipped=source.skipped)


def _write(drawn: Iterator[Tensor], folder: Path, *, writing: PictureWriting, count: int) -> None:
    """Write images, and a grid of the first of them."""
    shown: list[Image.Image] = []
    number = 0
    with progress(count, what="sample", unit="img") as bar:
        for images in drawn:
            for image in images:
                writing.write(folder / "pictures" / f"{number:05d}{writing.suffix}", image)
                shown += [writing.shown(image)] if number < _SHOWN else []
                number += 1
            bar.update(len(images))
    mosaic(shown).save(folder / "grid.png")


def _record(source: LatentSource, known: KnownLatents | None) -> dict[str, Any]:
    return {
        "method": source.method,
        "reason": source.reason,
        "latents": None if known is None else known.source,
        "num_latents": 0 if known is None else len(known),
        "prior": None if source.gap is None else source.gap.to_json(),
        "skipped": [asdict(skip) for skip in source.skipped],
    }


def _images(draw: Draw, codec: Codec, *, count: int, seed: int, batch_size: int) -> Iterator[Tensor]:
    """Yield batches of decoded images [n, C, H, W]."""
    for start in range(0, count, batch_size):
        yield decode_finite(codec, draw(range(start, min(start + batch_size, count)), seed=seed))
