"""Latents in tar files for webdataset."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.arrays import ShardRows, read_rows
from ldm_vae.latents.sealed import dump_json
from ldm_vae.system.store import Store


def file_names(dataset: LatentDataset) -> list[str]:
    """Return a name a shard that isn't empty."""
    return [f"latents-{file:05d}.tar" for file in range(sum(len(rows) > 0 for rows in dataset.shard_rows()))]


def write_files(dataset: LatentDataset, store: Store) -> Iterator[int]:
    """Write the files and yield the number of rows of each."""
    lines = dataset.rows()
    for file, rows in zip(file_names(dataset), filter(len, dataset.shard_rows()), strict=True):
        with store.writing(file) as temporary:
            write_tar(temporary, read_rows(dataset, rows, lines))
        yield len(rows)


def write_tar(path: Path, rows: ShardRows) -> None:
    """Write a shard's rows.

    The members of a row share a key, the image's number: `.mean.npy` and `.std.npy` or `.latents.npy`, `.cls`, and
    `.json` with the source and the other columns.
    """
    arrays = rows.arrays()
    with tarfile.open(path, "w") as tar:
        for row, line in enumerate(rows.lines):
            members = {f"{name}.npy": _npy(array[row]) for name, array in arrays.items()}
            if "label" in line:
                members["cls"] = str(line["label"]).encode()
            members["json"] = dump_json({"source": line["source"], **line.get("columns", {})})
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{line['sample']:012d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
