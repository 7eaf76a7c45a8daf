"""`ldm-vae explore neighbours`: the latents of a folder that are nearest to a picture's; and the same in Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ldm_vae.config.commands.explore import ExploreNeighboursOptions
from ldm_vae.config.names import LatentDistance
from ldm_vae.config.rules import require, require_one_of, require_positive
from ldm_vae.evaluation.grid import SEEN_SIDE, save_grid
from ldm_vae.exploring.codec import FastCodec, PlainCodec, decode_finite, open_codec
from ldm_vae.exploring.known import check_encoder
from ldm_vae.exploring.pictures import PictureWriting, read_picture
from ldm_vae.exploring.results import Exploration, write_record
from ldm_vae.images.buckets import nearest_bucket
from ldm_vae.images.decoding import upright_size
from ldm_vae.images.given import Picture, cut_middle, to_image_tensor
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.transforms import Size
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.models.families.family import DiffusersModel
from ldm_vae.system.float64 import in_float64
from ldm_vae.system.output_kinds import EXPLORATION
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.progress import progress
from ldm_vae.system.strict_json import dump_json
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

_CHUNK_BYTES = 1 << 24
"""Latents in float64 that are compared at once."""
FORMULAS = {
    "euclidean": "sqrt(mean((a - b)²)) over the elements of latents normalised a channel over the folder",
    "cosine": "1 - a·b / (|a| |b|) of latents normalised a channel over the folder",
}


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A row of a folder of latents, near to a picture."""

    row: int
    distance: float
    source: str
    """What the row's picture is called."""
    label: int | None


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The rows that are nearest to a picture."""

    rows: list[int]
    """The nearest first; of equal distances the lowest row."""
    distances: list[float]
    num_compared: int
    num_other_shapes: int
    """Rows that can't be compared, since their latents have another shape."""


def nearest_rows(
    dataset: LatentDataset, latent: Tensor, *, count: int, distance: LatentDistance, show: bool = False
) -> Nearest:
    """Compare a latent with every row of its shape, exactly, in memory that doesn't grow with the folder.

    Args:
        dataset: The folder, of any normalisation; means and standard deviations a channel come from its index.
        latent: The model's own latent, [c, h, w].
        count: Number of rows that are returned, at most.
        distance: Which; `FORMULAS` has them.
        show: Whether progress is shown.

    Raises:
        FieldError: No row has its shape.
    """
    stats = dataset.stats()
    mean, std = (values.numpy()[:, None, None] for values in (stats.mean, stats.std.clamp(min=1e-12)))
    asked = ((in_float64(latent).cpu().numpy() - mean) / std).ravel()
    chunk = max(1, _CHUNK_BYTES // (8 * asked.size))
    best_rows, best = np.empty(0, dtype=np.int64), np.empty(0)
    compared = 0
    with progress(len(dataset), what="neighbours", unit="row", show=show) as bar:
        for rows in _chunks(dataset, tuple(latent.shape), size=chunk):
            values = np.stack([dataset.latents(row).numpy() for row in rows]).astype(np.float64)
            found = _distances(((values - mean) / std).reshape(len(rows), -1), asked, distance=distance)
            best_rows = np.concatenate([best_rows, np.asarray(rows)])
            best = np.concatenate([best, found])
            order = np.lexsort((best_rows, best))[:count]
            best_rows, best = best_rows[order], best[order]
            compared += len(rows)
            bar.update(len(rows))
    require(
        compared > 0, f"<latents> {dataset.directory} holds no latents of the picture's shape {list(latent.shape)}"
    )
    return Nearest(
        rows=best_rows.tolist(),
        distances=best.tolist(),
        num_compared=compared,
        num_other_shapes=len(dataset) - compared,
    )


def _chunks(dataset: LatentDataset, shape: tuple[int, ...], *, size: int) -> Iterator[range]:
    """Yield ranges of rows whose latents have a shape."""
    for rows in dataset.shard_rows():
        if len(rows) and dataset.shape(rows.start) == shape:
            for start in range(rows.start, rows.stop, size):
                yield range(start, min(start + size, rows.stop))


def _distances(rows: np.ndarray, asked: np.ndarray, *, distance: LatentDistance) -> np.ndarray:
    """Return the distance of each row [n, d] to [d]; a row's doesn't depend on the rows beside it."""
    if distance == "euclidean":
        return np.sqrt(np.square(rows - asked).mean(axis=1))
    lengths = np.sqrt(np.square(rows).sum(axis=1)) * math.sqrt(np.square(asked).sum())
    return 1 - (rows * asked).sum(axis=1) / np.maximum(lengths, 1e-300)


def nearest_latents(
    autoencoder: DiffusersModel,
    image: Picture,
    latents: str | Path | LatentDataset,
    *,
    count: int = 8,
    distance: LatentDistance = "euclidean",
    resolution: int | None = None,
) -> list[Neighbour]:
    """Return the rows of a folder of latents that are nearest to a picture's, by exact comparison with all.

    Args:
        autoencoder: The one that encoded the folder, on any device, in any floating-point type.
        image: A picture of any kind that `encode_images` takes.
        latents: What `ldm-vae encode` wrote.
        count: Number of rows, at most.
        distance: `euclidean`: the root mean square of the difference of latents with mean 0 and standard deviation 1 a
            channel over the folder. `cosine`: 1 less the cosine between them.
        resolution: Side that the picture is resized and cropped to, as the folder's pictures were; None: it is cut
            about its middle to a multiple of the model's factor.

    Returns:
        The nearest first; of equal distances the lowest row.

    Raises:
        ValueError: In one line, where the folder holds no latents of the picture's shape, or another model's.
    """
    require_one_of(LatentDistance, distance=distance)
    require_positive(count=count)
    codec = PlainCodec.of(autoencoder)
    dataset = latents if isinstance(latents, LatentDataset) else LatentDataset(latents, normalize="none")
    check_encoder(dataset, codec, vae=codec.family.class_name())
    picture = to_image_tensor(image, channels=codec.family.in_channels, resolution=resolution)
    mean = codec.encode(cut_middle(picture, factor=codec.family.spatial_factor)[None])[0][0]
    return _named(dataset, nearest_rows(dataset, mean, count=count, distance=distance))


def _named(dataset: LatentDataset, nearest: Nearest) -> list[Neighbour]:
    neighbours = []
    for row, distance in zip(nearest.rows, nearest.distances, strict=True):
        line = dataset.row(row)
        neighbours.append(Neighbour(row=row, distance=distance, source=line["source"], label=line.get("label")))
    return neighbours


def neighbours(options: ExploreNeighboursOptions) -> Exploration:
    """Find the latents that are nearest to a picture's; write them, and a grid of what they decode to.

    Raises:
        ValueError: In one line, naming the option, for what a user can mend.
    """
    output = OutputFolder(options.output, kind=EXPLORATION)
    output.check(overwrite=options.overwrite)
    dataset = LatentDataset(options.latents, normalize="none")
    require(len(dataset) > 0, f"<latents> {options.latents} holds no latents")
    codec = open_codec(options, options)
    if not options.other_vae:
        check_encoder(dataset, codec, vae=options.vae, hint="; <other_vae> searches all the same")
    channels = dataset.shape(0)[0]
    require(
        channels == codec.family.latent_channels,
        f"<latents> {options.latents} has {channels} channels, and <vae> {options.vae} {codec.family.latent_channels}",
    )
    size = _size(options, dataset, codec)
    image = read_picture(
        options.picture, channels=codec.family.in_channels, rules=options, field="picture", resolution=size
    )
    latent = codec.encode(image[None])[0][0].cpu()
    nearest = nearest_rows(dataset, latent, count=options.count, distance=options.distance, show=True)
    found = _named(dataset, nearest)
    record = {
        "picture": options.picture,
        "size": list(size),
        "distance": {"name": options.distance, "formula": FORMULAS[options.distance]},
        "num_compared": nearest.num_compared,
        "num_other_shapes": nearest.num_other_shapes,
    }
    with output.whole(overwrite=options.overwrite) as folder:
        _draw(folder, image, latent, found, dataset, codec, options)
        listed = dump_json([asdict(neighbour) for neighbour in found], indent=1)
        (folder / "neighbours.json").write_text(listed + "\n", encoding="utf-8")
        write_record(folder, "neighbours", record, settings=asdict(options), codec=codec)
    return Exploration(output=output.path, told=_told(options, nearest, found, size))


def _told(options: ExploreNeighboursOptions, nearest: Nearest, found: list[Neighbour], size: Size) -> str:
    told = f"{counted(len(found), 'neighbour')} of {printable(options.picture)}, cropped to {size[0]}x{size[1]} "
    told += f"pixels, by {options.distance} distance among {nearest.num_compared:,} rows; the nearest is row "
    told += f"{found[0].row}, {printable(found[0].source)}, at {found[0].distance:.4g}"
    if nearest.num_other_shapes:
        told += f"; {counted(nearest.num_other_shapes, 'row')} of other shapes left out"
    return told


def _size(options: ExploreNeighboursOptions, dataset: LatentDataset, codec: FastCodec) -> Size:
    """Return the (width, height) that the picture becomes: the folder's, of several that of the nearest aspect."""
    if options.resolution is not None:
        return options.resolution, options.resolution
    factor = codec.family.spatial_factor
    shapes = {dataset.shape(rows.start) for rows in dataset.shard_rows() if len(rows)}
    sizes = sorted((width * factor, height * factor) for _, height, width in shapes)
    if len(sizes) == 1:
        return sizes[0]
    try:
        own = upright_size(options.picture, channels=codec.family.in_channels, rules=options)
    except UnreadableImage as error:
        raise ValueError(f"picture: {error}") from None
    return nearest_bucket(own, sizes=sizes)


def _draw(
    folder: Path,
    image: Tensor,
    latent: Tensor,
    found: list[Neighbour],
    dataset: LatentDataset,
    codec: FastCodec,
    options: ExploreNeighboursOptions,
) -> None:
    """Write the picture, its reconstruction and its neighbours, as decoded, beside each other."""
    writing = PictureWriting(channels=codec.family.out_channels, rules=options)
    latents = [latent, *(dataset.latents(neighbour.row) for neighbour in found)]
    decoded = [decode_finite(codec, each[None])[0] for each in latents]
    titles = ["picture", "reconstruction", *(f"{each.row}: {each.distance:.4g}" for each in found)]
    save_grid(
        folder / "grid.png", [[writing.shown(each) for each in (image, *decoded)]], titles=titles, side=SEEN_SIDE
    )
