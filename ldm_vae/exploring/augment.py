"""`ldm-vae explore augment`: variants of a collection's pictures, with their labels; and the same in Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.commands.explore import ExploreAugmentOptions
from ldm_vae.config.rules import require, require_positive
from ldm_vae.exploring.batches import PictureBatches
from ldm_vae.exploring.codec import Codec, PlainCodec, decode_finite, open_codec
from ldm_vae.exploring.pictures import PictureWriting
from ldm_vae.exploring.results import told_skipped
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.given import Picture, cut_middle, to_image_tensor, to_picture, unbatched
from ldm_vae.images.guard import SkippedImage
from ldm_vae.images.metadata_files import FILE_NAME
from ldm_vae.latents.sealed import dump_json
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.system.files import naming
from ldm_vae.system.output_kinds import AUGMENTATION, is_marked
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.randomness import sample_rng
from ldm_vae.system.telling import counted

METADATA, SKIPPED = "metadata.jsonl", "skipped.jsonl"
_LABEL_NAME = "label_name"


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How variants are drawn near a latent."""

    posterior: bool
    """Whether a sample of the posterior is taken in place of its mean."""
    move: float
    """Size of the random move, in standard deviations of the picture's latent a channel."""
    seed: int

    def of(self, mean: Tensor, std: Tensor | None, *, name: str, copy: int) -> Tensor:
        """Return variant `copy` of a picture's latent: a function of the seed, the picture's name and the number.

        Args:
            mean: The posterior's mean, [c, h, w], on the CPU.
            std: Its standard deviation; None where there is no posterior.
            name: What the picture is called.
            copy: Number of the variant, from 0.
        """
        rng = sample_rng(copy, seed=self.seed, stream=f"explore/augment/{name}")
        sampled, moved = (torch.from_numpy(rng.standard_normal(tuple(mean.shape), dtype=np.float32)) for _ in range(2))
        latent = mean + std * sampled if self.posterior and std is not None else mean
        own = mean.std(dim=(1, 2), correction=0, keepdim=True)
        return latent + self.move * own * moved

    def told(self, family: Family) -> str:
        """Return how variants are drawn, for the user.

        Raises:
            FieldError: They would all be the reconstruction.
        """
        drawn = self.posterior and family.bottleneck.has_posterior
        why = f"{family.class_name()} has no posterior" if self.posterior else "<posterior> is off"
        require(self.move >= 0, f"<move> is {self.move}; it can't be negative")
        require(drawn or self.move > 0, f"{why}, so that <move> 0 leaves every variant the reconstruction")
        parts = ["the posterior's samples" if drawn else "the latent"]
        parts += [f"moved by {self.move:g} standard deviations of the picture's latent"] if self.move else []
        parts += [why] if self.posterior and not drawn else []
        parts += ["each position taken to its nearest code"] if family.codebook_size is not None else []
        return ", ".join(parts)


def augment_pictures(
    autoencoder: DiffusersModel,
    images: Picture | Sequence[Picture],
    *,
    names: Sequence[str] | None = None,
    copies: int = 1,
    posterior: bool = True,
    move: float = 0.1,
    seed: int = 0,
    resolution: int | None = None,
) -> list[list[Image.Image | np.ndarray]]:
    """Return variants of pictures, drawn near their latents.

    Args:
        autoencoder: On any device, in any floating-point type.
        images: One picture or several, of any kind that `encode_images` takes.
        names: What the pictures are called, on which the draws depend; None: 0, 1 and so on.
        copies: Variants of each.
        posterior: Draw from a picture's posterior, where the autoencoder has one, in place of its mean.
        move: Size of the random move that is added to a latent, in standard deviations of the picture's own latent, a
            channel.
        seed: A variant is a function of (seed, name, number of the variant).
        resolution: Side that pictures are resized and cropped to, as in `encode_images`.

    Returns:
        For each picture its variants.

    Raises:
        ValueError: In one line, for pictures that don't fit, and where nothing would vary.
    """
    require_positive(copies=copies)
    codec = PlainCodec.of(autoencoder)
    variation = Variation(posterior=posterior, move=move, seed=seed)
    variation.told(codec.family)
    pictures = unbatched(images)
    called = [str(number) for number in range(len(pictures))] if names is None else list(names)
    require(len(called) == len(pictures), f"names: {len(called)} for {len(pictures)} pictures; give one for each")
    made = []
    for picture, name in zip(pictures, called, strict=True):
        image = to_image_tensor(picture, channels=codec.family.in_channels, resolution=resolution)
        image = cut_middle(image, factor=codec.family.spatial_factor)
        mean, std = _moments(codec, image[None])[0]
        variants = [variation.of(mean, std, name=name, copy=copy) for copy in range(copies)]
        made.append([to_picture(decode_finite(codec, latent[None])[0]) for latent in variants])
    return made


def _moments(codec: Codec, images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Return the posterior's mean and standard deviation of each image [B, C, H, W], on the CPU."""
    mean, std = codec.encode(images)
    stds = [None] * len(mean) if std is None else list(std.float().cpu())
    return list(zip(mean.float().cpu(), stds, strict=True))


@dataclass(kw_only=True)
class Augmentation:
    """What was written."""

    output: Path
    told: str
    num_pictures: int
    """Pictures that were varied."""
    num_variants: int
    skipped: list[SkippedImage] = field(default_factory=list)
    """Pictures that couldn't be read."""

    def __str__(self) -> str:
        """Return it in one line, or two."""
        variants = f"{counted(self.num_variants, 'variant')} of {counted(self.num_pictures, 'picture')}"
        return f"{self.output}: {variants}, by {self.told}{told_skipped(self.skipped)}"


def augment(options: ExploreAugmentOptions) -> Augmentation:
    """Write variants of pictures into a folder that is read as data again, with the same labels and columns.

    Raises:
        ValueError: In one line, naming the option, for what a user can mend.
    """
    output = OutputFolder(options.output, kind=AUGMENTATION)
    output.check(overwrite=options.overwrite)
    codec = open_codec(options, options)
    variation = Variation(posterior=options.posterior, move=options.move, seed=options.seed)
    told = variation.told(codec.family)
    pictures = PictureBatches(options, codec, resolution=options.resolution)
    writing = PictureWriting(channels=codec.family.out_channels, rules=options)
    stems = pictures.stems()
    kept = KeptColumns(pictures.collection, folders={str(PurePosixPath(stem).parent) for stem in stems.values()})
    names = {index: [f"{stem}-{copy}{writing.suffix}" for copy in range(options.copies)]
             for index, stem in stems.items()}  # fmt: skip
    request = {"augmented": {"by": told, "autoencoder": codec.fingerprint.whole, "settings": asdict(options)}}
    files = [name for each in names.values() for name in each] + ([METADATA] if kept.columns else [])
    sources = {stem: pictures.collection.name(index) for index, stem in stems.items()}
    mark = {**request, "files": files, "sources": sources}
    output.begin(files, mark=dump_json(mark), listed=_listed(output))
    lines: list[bytes] = []
    count = 0
    for batch, images in pictures:
        for index, source, moments in zip(batch.indices, batch.names, _moments(codec, images), strict=True):
            for copy, name in enumerate(names[index]):
                latent = variation.of(*moments, name=source, copy=copy)
                writing.write(output.path / name, decode_finite(codec, latent[None])[0])
                if kept.columns:
                    lines.append(dump_json({FILE_NAME: name, **kept.of(index)}))
            count += 1
    if lines:
        _write_lines(output.path / METADATA, lines)
    if pictures.skipped:
        _write_lines(output.path / SKIPPED, [dump_json(asdict(skip)) for skip in pictures.skipped])
    return Augmentation(
        output=output.path,
        told=told,
        num_pictures=count,
        num_variants=count * options.copies,
        skipped=pictures.skipped,
    )


class KeptColumns:
    """What a collection knows of its pictures beside them, as metadata.jsonl keeps it.

    Args:
        collection: The pictures.
        folders: Folders that the variants go to. Where they are all classes, in order, labels are kept by them.
    """

    def __init__(self, collection: ImageCollection, *, folders: set[str]) -> None:
        self._collection = collection
        label, names = collection.label_column, collection.label_names
        classes = sorted({PurePosixPath(folder).name for folder in folders})
        self._by_folder = names is not None and classes == list(names)  # all are there, so that each keeps its number
        left_out = {label} if self._by_folder else set()
        self.columns = [name for name in collection.columns if name not in left_out]
        """Columns of the collection that metadata.jsonl keeps."""

    def of(self, index: int) -> dict[str, Any]:
        """Return the columns of a picture; a class that no folder tells by its number and by its name."""
        row = self._collection.row(index)
        row.pop(FILE_NAME, None)
        if self._by_folder:
            row.pop(self._collection.label_column or "", None)
            return row
        names, label = self._collection.label_names, self._collection.label(index)
        return row if names is None or label is None else {**row, _LABEL_NAME: names[label]}


def _write_lines(path: Path, lines: list[bytes]) -> None:
    with naming(path), open(path, "wb") as file:
        file.writelines(lines)


def _listed(output: OutputFolder) -> list[str]:
    """Return the files that an earlier augmentation into the folder listed.

    Raises:
        ValueError: Its list is damaged.
    """
    if not is_marked(output.path, AUGMENTATION):
        return []
    path = output.path / AUGMENTATION.mark
    try:
        return [str(name) for name in json.loads(path.read_bytes())["files"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is damaged, so it isn't known which pictures an earlier augmentation wrote; take another folder"
        ) from None
