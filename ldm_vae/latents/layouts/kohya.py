"""Latents as kohya's sd-scripts caches them: an .npz beside each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm_vae.config.commands.latents import LatentsExportOptions
from ldm_vae.config.rules import require
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.kohya_buckets import Size, kohya_bucket, kohya_bucket_sizes
from ldm_vae.latents.shards import SAMPLES
from ldm_vae.system.files import whole_or_absent
from ldm_vae.system.paths import LONGEST_NAME, inside
from ldm_vae.system.text import printable

FACTOR = 8
"""sd-scripts reads every shape of these models' latents as that of the bucket over 8."""
SD_SCRIPTS = "sd_scripts"
"""Value of the plan's `bucket_set` where buckets were chosen as sd-scripts chooses them."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    """How sd-scripts keeps the latents of a kind of model."""

    channels: int
    several_sizes: bool
    """Whether one file holds latents of several sizes, each under names with its [h]x[w]."""
    shift: float = 0.0
    scale: float = 1.0
    """Cached are (z - shift)·scale. Only FLUX's are cached scaled (`AutoEncoder.encode` in library/flux_models.py);
    those of the others are scaled when they are read."""


_MODELS = {
    "sd": _Model(channels=4, several_sizes=False),
    "sdxl": _Model(channels=4, several_sizes=False),
    "sd3": _Model(channels=16, several_sizes=True),
    "flux": _Model(channels=16, several_sizes=True, shift=0.1159, scale=0.3611),
}


@dataclass(frozen=True, kw_only=True)
class KohyaFile:
    """A file to be written."""

    row: int
    path: Path
    size: Size
    """Size of the image's file as it is stored, without its EXIF orientation."""


@dataclass(frozen=True, kw_only=True)
class KohyaFiles:
    """All files to be written, and what is left out."""

    files: list[KohyaFile]
    turned: list[str]
    """Images that are stored turned and fall into another bucket as they are stored, which is how sd-scripts reads
    them."""
    without_image: list[str]
    """Latents beside which no image lies."""


def plan_files(dataset: LatentDataset, folder: Path, options: LatentsExportOptions) -> KohyaFiles:
    """Name every file before the first is written.

    Raises:
        ValueError: In one line, where sd-scripts couldn't use the latents, or would find others in their place.
    """
    _check_model(dataset, options)
    sizes = _bucket_sizes(dataset)
    planned = KohyaFiles(files=[], turned=[], without_image=[])
    sources: dict[Path, str] = {}
    for row, line in enumerate(dataset.rows()):
        source = line["source"]
        require("size" in line, f"{dataset.directory} doesn't know the sizes of its images; encode them again")
        image = inside(folder, source, source=dataset.store.place(SAMPLES))
        stored = _stored_size(image) if image.is_file() else None
        if not image.is_file():
            planned.without_image.append(source)
        size = stored or (line["size"][0], line["size"][1])
        _, h, w = dataset.shape(row)
        if sizes and kohya_bucket(size, sizes=sizes) != (w * FACTOR, h * FACTOR):
            planned.turned.append(source)
            continue
        path = image.with_name(f"{image.stem}_{size[0]:04d}x{size[1]:04d}_{options.kohya_model}.npz")
        _check_name(path, source, options)
        require(path not in sources, f"{printable(sources.get(path, ''))} and {printable(source)} would both be "
                f"{printable(path.name)}; rename one")  # fmt: skip
        sources[path] = source
        planned.files.append(KohyaFile(row=row, path=path, size=size))
    return planned


def write_files(dataset: LatentDataset, planned: KohyaFiles, options: LatentsExportOptions) -> Iterator[int]:
    """Write the files and yield 1 after each.

    Each holds `latents`, `original_size`, `crop_ltrb` and, where there are any, `latents_flipped`.
    """
    model = _MODELS[options.kohya_model]
    for file in planned.files:
        _, h, w = dataset.shape(file.row)
        suffix = f"_{h}x{w}" if model.several_sizes else ""
        arrays: dict[str, Any] = {
            f"latents{suffix}": _scaled(dataset, file.row, model, flipped=False),
            f"original_size{suffix}": np.array(file.size),
            f"crop_ltrb{suffix}": np.array(kohya_crop((w * FACTOR, h * FACTOR), original=file.size)),
        }
        if dataset.index["flip"]:
            arrays[f"latents_flipped{suffix}"] = _scaled(dataset, file.row, model, flipped=True)
        if model.several_sizes and file.path.exists():
            arrays = _read(file.path) | arrays
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_absent(file.path, sync=False) as temporary, open(temporary, "wb") as npz:
            np.savez(npz, **arrays)
        yield 1


def kohya_crop(bucket: Size, *, original: Size) -> tuple[float, float, float, float]:
    """Return sd-scripts' crop_ltrb, which it conditions SDXL on.

    It is the place of the picture when all of it is laid into its bucket (`BucketManager.get_crop_ltrb`).
    """
    scale = min(bucket[0] / original[0], bucket[1] / original[1])
    width, height = original[0] * scale, original[1] * scale
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return left, top, left + width, top + height


def _check_model(dataset: LatentDataset, options: LatentsExportOptions) -> None:
    name, vae = options.kohya_model, dataset.index["vae"]
    model, factor = _MODELS[name], vae["spatial_factor"]
    channels = dataset.shape(0)[0]
    require(
        "mel_frames" not in dataset.index["preprocessing"],
        f"{dataset.directory} holds latents of sounds; sd-scripts looks for latents beside images",
    )
    require(
        "crops" not in dataset.index["preprocessing"],
        f"{dataset.directory} holds several crops of each image, of which sd-scripts reads one",
    )
    require(
        factor == FACTOR,
        f"{dataset.directory} holds latents of a factor {factor}; sd-scripts reads those of {name} with {FACTOR}",
    )
    require(
        channels == model.channels,
        f"{dataset.directory} holds latents of {channels} channels; {name} has {model.channels}",
    )


def _bucket_sizes(dataset: LatentDataset) -> list[Size]:
    """Return the sizes of the buckets that the images were put in; none where all are squares."""
    preprocessing = dataset.index["preprocessing"]
    if "bucket_step" not in preprocessing:
        return []
    require(
        preprocessing["bucket_set"] == SD_SCRIPTS,
        f"{dataset.directory} holds buckets of another choice than sd-scripts', which looks for each image's latents "
        f"in the shape of its own bucket; encode with --buckets --bucket_set {SD_SCRIPTS}",
    )
    return kohya_bucket_sizes(
        preprocessing["resolution"],
        step=preprocessing["bucket_step"],
        smallest=preprocessing["min_bucket_reso"],
        largest=preprocessing["max_bucket_reso"],
    )


def _stored_size(image: Path) -> Size | None:
    """Return (width, height) as sd-scripts reads them, without the EXIF orientation; None where they can't be read."""
    try:
        with Image.open(image) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _check_name(path: Path, source: str, options: LatentsExportOptions) -> None:
    length = len(path.name.encode(errors="surrogateescape"))
    require(
        length <= LONGEST_NAME,
        f"{printable(source)}: the name of its latents would have {length} bytes, and a name may have {LONGEST_NAME}; "
        f"rename it",
    )
    older = path.with_name(f"{Path(source).stem}.npz")
    require(
        _MODELS[options.kohya_model].several_sizes or not older.exists(),
        f"{printable(str(older))} is there, which sd-scripts would take instead; move it away",
    )
    require(
        options.overwrite or not path.exists(), f"{printable(str(path))} is there already; <overwrite> replaces it"
    )


def _scaled(dataset: LatentDataset, row: int, model: _Model, *, flipped: bool) -> np.ndarray:
    return ((dataset.latents(row, flipped=flipped) - model.shift) * model.scale).numpy()


def _read(path: Path) -> dict[str, Any]:
    """Return what another size's export left in a file."""
    try:
        with np.load(path, allow_pickle=False) as npz:
            return dict(npz)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{printable(str(path))} can't be read ({error}); remove it") from None
