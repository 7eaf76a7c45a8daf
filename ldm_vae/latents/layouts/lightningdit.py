"""Latents as LightningDiT's ImgLatentDataset reads them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import torch

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.system.store import Store
from ldm_vae.system.tensors import write_tensors

STATISTICS = "latents_stats.pt"


def file_names(dataset: LatentDataset) -> list[str]:
    """Return a name a shard that isn't empty, and that of the statistics."""
    count = sum(len(rows) > 0 for rows in dataset.shard_rows())
    return [*(f"latents_rank00_shard{file:03d}.safetensors" for file in range(count)), STATISTICS]


def write_files(dataset: LatentDataset, store: Store) -> Iterator[int]:
    """Write the files and yield the number of rows of each.

    They are safetensors with `latents`, `latents_flip` and `labels`, and statistics: `mean` and `std`, [1, c, 1, 1].
    """
    for name, rows in zip(file_names(dataset), filter(len, dataset.shard_rows()), strict=False):
        labels = [max(dataset[row].label, 0) for row in rows]  # a collection without labels is one class
        with store.writing(name) as temporary:
            write_tensors(
                temporary,
                {
                    "latents": torch.stack([dataset.latents(row) for row in rows]),
                    "latents_flip": torch.stack([dataset.latents(row, flipped=True) for row in rows]),
                    "labels": torch.tensor(labels, dtype=torch.int64),
                },
            )
        yield len(rows)
    stats = dataset.stats()
    means, stds = (values.float()[None, :, None, None] for values in (stats.mean, stats.std))
    content = io.BytesIO()  # torch names no file where a disk is full
    torch.save({"mean": means, "std": stds}, content)
    store.write_whole(STATISTICS, content.getvalue())
    yield 0
