"""`ldm-vae latents export`: latents in the layouts that other trainers read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Array3D, Dataset, Features, List, Value
from tqdm import tqdm

from ldm_vae.config.commands.latents import LatentsExportOptions
from ldm_vae.config.rules import require
from ldm_vae.latents.dataset import NO_LABEL, LatentDataset
from ldm_vae.latents.sealed import dump_json
from ldm_vae.latents.shards import SAMPLES
from ldm_vae.system.files import whole_or_absent
from ldm_vae.system.outputs import LATENTS_EXPORT, OutputFolder, is_marked
from ldm_vae.system.paths import inside
from ldm_vae.system.tensors import write_tensors

_LINES_AT_ONCE = 10_000


@dataclass(kw_only=True)
class LatentsExportSummary:
    """What was written."""

    output: Path
    layout: str
    num_rows: int
    num_files: int

    def __str__(self) -> str:
        return f"{self.output}: {self.num_rows:,} latents in {self.num_files:,} files, layout {self.layout}"


def export_latents(options: LatentsExportOptions) -> LatentsExportSummary:
    """Write a folder of latents in another layout; the latents are the VAE's own, not scaled, in all of them.

    Raises:
        ValueError: naming what the layout needs and the folder hasn't, or what the output holds.
    """
    moments = options.layout in ("parquet", "webdataset")
    require(not (options.sample and moments), f"--sample is not for {options.layout}, which keeps mean and std")
    dataset = LatentDataset(
        Path(options.latents).expanduser(), sample=options.sample, normalize="none", seed=options.seed
    )
    require(len(dataset) > 0, f"--latents {options.latents} holds no rows")
    if options.layout == "lightningdit":
        require(dataset.index["flip"], f"{dataset.directory} holds no mirrored latents, which lightningdit needs")
        _require_one_shape(dataset, options)
    output = OutputFolder(options.output, kind=LATENTS_EXPORT)
    folder = output.path
    if options.layout == "kohya":  # whose files lie beside the images
        output.check_writable()
    else:
        output.check(overwrite=options.overwrite)
        files = _file_names(options.layout, dataset=dataset)
        mark = dump_json({"layout": options.layout, "files": files})
        output.begin(files, mark=mark, listed=_listed(folder))
    write = _LAYOUTS[options.layout]
    num_files = 0
    with tqdm(total=len(dataset), unit="latent", desc="export", dynamic_ncols=True, disable=None) as bar:
        for rows, count in write(dataset, folder, options):
            num_files += count
            bar.update(rows)
    return LatentsExportSummary(output=folder, layout=options.layout, num_rows=len(dataset), num_files=num_files)


def _file_names(layout: str, *, dataset: LatentDataset) -> list[str]:
    """Return the names of a layout's files, one a shard that isn't empty."""
    count = sum(len(rows) > 0 for rows in dataset.shard_rows())
    if layout == "lightningdit":
        return [*(f"latents_rank00_shard{file:03d}.safetensors" for file in range(count)), "latents_stats.pt"]
    if layout == "parquet":
        return [f"train-{file:05d}-of-{count:05d}.parquet" for file in range(count)]
    return [f"latents-{file:05d}.tar" for file in range(count)]


def _listed(folder: Path) -> list[str]:
    """Return the names that an earlier export into the folder listed."""
    if not is_marked(folder, LATENTS_EXPORT):
        return []
    path = folder / LATENTS_EXPORT.mark
    try:
        return [str(name) for name in json.loads(path.read_bytes())["files"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged, so it isn't known what an earlier export wrote; take another folder"
                         ) from None  # fmt: skip


def _lightningdit(dataset: LatentDataset, folder: Path, options: LatentsExportOptions) -> Iterator[tuple[int, int]]:
    """Safetensors with `latents`, `latents_flip` and `labels`, and `latents_stats.pt` with `mean` and `std`
    [1, c, 1, 1], as LightningDiT's ImgLatentDataset reads them."""
    names = _file_names("lightningdit", dataset=dataset)
    for name, rows in zip(names, filter(len, dataset.shard_rows()), strict=False):
        labels = [max(dataset[row].label, 0) for row in rows]  # a collection without labels is one class
        with whole_or_absent(folder / name) as temporary:
            write_tensors(
                temporary,
                {
                    "latents": torch.stack([dataset.latents(row) for row in rows]),
                    "latents_flip": torch.stack([dataset.latents(row, flipped=True) for row in rows]),
                    "labels": torch.tensor(labels, dtype=torch.int64),
                },
            )
        yield len(rows), 1
    stats = dataset.stats()
    with whole_or_absent(folder / "latents_stats.pt") as temporary:
        torch.save({"mean": stats.mean.float()[None, :, None, None], "std": stats.std.float()[None, :, None, None]},
                   temporary)  # fmt: skip
    yield 0, 1


def _kohya(dataset: LatentDataset, folder: Path, options: LatentsExportOptions) -> Iterator[tuple[int, int]]:
    """An .npz an image, named by the image and its size, with `latents`, `original_size`, `crop_ltrb` and, where there
    are any, `latents_flipped`, as sd-scripts caches them."""
    written: dict[Path, str] = {}
    for row, line in enumerate(dataset.rows()):
        require("size" in line, f"{dataset.directory} doesn't know the sizes of its images; encode them again")
        width, height = line["size"]
        source = PurePosixPath(line["source"].replace("\\", "/"))
        name = source.with_name(f"{source.stem}_{width:04d}x{height:04d}_{options.kohya_model}.npz")
        path = inside(folder, str(name), source=dataset.directory / SAMPLES)
        require(path not in written, f"{written.get(path)} and {source} would both be {path.name}; rename one")
        require(options.overwrite or not path.exists(), f"{path} is there already; --overwrite replaces it")
        written[path] = str(source)
        _, h, w = dataset.shape(row)
        factor = dataset.index["vae"]["spatial_factor"]
        suffix = f"_{h}x{w}" if options.kohya_model in ("sd3", "flux") else ""
        arrays: dict[str, Any] = {
            f"latents{suffix}": dataset.latents(row).numpy(),
            f"original_size{suffix}": np.array([width, height]),
            f"crop_ltrb{suffix}": np.array(kohya_crop((w * factor, h * factor), original=(width, height))),
        }
        if dataset.index["flip"]:
            arrays[f"latents_flipped{suffix}"] = dataset.latents(row, flipped=True).numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_absent(path, sync=False) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
        yield 1, 1


def kohya_crop(bucket: tuple[int, int], *, original: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return sd-scripts' crop_ltrb, which it conditions SDXL on: the picture laid wholly into its bucket."""
    scale = min(bucket[0] / original[0], bucket[1] / original[1])
    width, height = original[0] * scale, original[1] * scale
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return left, top, left + width, top + height


def _parquet(dataset: LatentDataset, folder: Path, options: LatentsExportOptions) -> Iterator[tuple[int, int]]:
    """Parquet files that `datasets.load_dataset` reads: the stored tensors as arrays, `label`, `sample`, `source` and
    the collection's other columns."""
    one_shape = _has_one_shape(dataset)
    columns = _column_features(dataset)
    shards = [rows for rows in dataset.shard_rows() if rows]
    lines = dataset.rows()
    for name, rows in zip(_file_names("parquet", dataset=dataset), shards, strict=True):
        table: dict[str, list[Any]] = {}
        for row, line in zip(rows, lines, strict=False):
            values: dict[str, Any] = {column: line.get("columns", {}).get(column) for column in columns}
            values |= {tensor: _storable(dataset, row, tensor) for tensor in dataset.moments(row)}
            values |= {"label": line.get("label", NO_LABEL), "sample": line["sample"], "source": line["source"]}
            for column, value in values.items():
                table.setdefault(column, []).append(value)
        own = {"label": Value("int64"), "sample": Value("int64"), "source": Value("string")}
        features = Features({**columns, **own})
        for tensor_name, tensor in dataset.moments(rows[0]).items():
            dtype = "float32" if tensor.dtype == torch.bfloat16 else str(tensor.dtype).removeprefix("torch.")
            nested = List(List(List(Value(dtype))))
            features[tensor_name] = Array3D(shape=tuple(tensor.shape), dtype=dtype) if one_shape else nested
        with whole_or_absent(folder / name) as temporary:
            columnar = Dataset.from_dict(table, features=features).with_format("arrow")[:]
            pq.write_table(columnar.replace_schema_metadata(features.arrow_schema.metadata), temporary)
        yield len(rows), 1


def _webdataset(dataset: LatentDataset, folder: Path, options: LatentsExportOptions) -> Iterator[tuple[int, int]]:
    """Tar files in which the members of a row share a key: `.mean.npy` and `.std.npy` or `.latents.npy`, `.cls`, and
    `.json` with the source and the other columns."""
    lines = dataset.rows()
    files = _file_names("webdataset", dataset=dataset)
    for file, rows in zip(files, filter(len, dataset.shard_rows()), strict=True):
        with whole_or_absent(folder / file) as temporary, tarfile.open(temporary, "w") as tar:
            for row, line in zip(rows, lines, strict=False):
                members = {f"{name}.npy": _npy(_storable(dataset, row, name)) for name in dataset.moments(row)}
                if "label" in line:
                    members["cls"] = str(line["label"]).encode()
                members["json"] = dump_json({"source": line["source"], **line.get("columns", {})})
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{line['sample']:012d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        yield len(rows), 1


_LAYOUTS: dict[str, Callable[[LatentDataset, Path, LatentsExportOptions], Iterator[tuple[int, int]]]] = {
    "lightningdit": _lightningdit,
    "kohya": _kohya,
    "parquet": _parquet,
    "webdataset": _webdataset,
}


def _storable(dataset: LatentDataset, row: int, name: str) -> np.ndarray:
    """A row's tensor as numpy has it, which knows no bfloat16."""
    tensor = dataset.moments(row)[name]
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _has_one_shape(dataset: LatentDataset) -> bool:
    return len({tuple(shard["shape"]) for shard in dataset.index["shards"] if shard["count"]}) == 1


def _require_one_shape(dataset: LatentDataset, options: LatentsExportOptions) -> None:
    require(
        _has_one_shape(dataset),
        f"{dataset.directory} holds buckets of several shapes, for which {options.layout} has no place",
    )


def _column_features(dataset: LatentDataset) -> Features:
    """Find types that fit the other columns in every row."""
    schema = pa.schema([])
    lines = (line["columns"] for line in dataset.rows() if "columns" in line)
    while some := list(islice(lines, _LINES_AT_ONCE)):
        schema = pa.unify_schemas([schema, pa.Table.from_pylist(some).schema], promote_options="permissive")
    return Features.from_arrow_schema(schema)
