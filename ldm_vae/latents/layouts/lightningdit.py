"""Latents as LightningDiT's ImgLatentDataset reads them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.system.store import Store
from ldm_vae.system.tensors import write_tensors

STATISTICS = "latents_stats.pt"


def file_names(dataset: LatentDataset) -> list[str]:
    """Return a name a shard that isn't empty, and that of the statistics."""
    count = sum(len(rows) > 0 for rows in dataset.shard_rows())
    return [*(f"latents_rank00_shard{file:03d}.safetensors" for file in range(count)), STATISTICS]


def write_files(dataset: LatentDataset, store: Store) -> Iterator[int]:
    """Write the files and yield the number of rows of each."""
    for name, rows in zip(file_names(dataset), filter(len, dataset.shard_rows()), strict=False):
        with store.writing(name) as temporary:
            write_tensor_file(
                temporary,
                latents=torch.stack([dataset.latents(row) for row in rows]),
                flipped=torch.stack([dataset.latents(row, flipped=True) for row in rows]),
                labels=[dataset[row].label for row in rows],
            )
        yield len(rows)
    stats = dataset.stats()
    store.write_whole(STATISTICS, statistics_content(mean=stats.mean, std=stats.std))
    yield 0


def write_tensor_file(path: Path, *, latents: Tensor, flipped: Tensor, labels: Sequence[int]) -> None:
    """Write safetensors with `latents` and `latents_flip`, float32 [n, c, h, w], and `labels` [n].

    A collection without labels is one class.
    """
    classes = torch.tensor([max(label, 0) for label in labels], dtype=torch.int64)
    write_tensors(path, {"latents": latents, "latents_flip": flipped, "labels": classes})


def statistics_content(*, mean: Tensor, std: Tensor) -> bytes:
    """Return the content of the statistics, `mean` and `std` [1, c, 1, 1], from those of each channel [c]."""
    means, stds = (values.float()[None, :, None, None] for values in (mean, std))
    content = io.BytesIO()  # torch names no file where a disk is full
    torch.save({"mean": means, "std": stds}, content)
    return content.getvalue()
