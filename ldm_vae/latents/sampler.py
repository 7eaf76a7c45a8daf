"""Batches of latents of one shape, for folders that were encoded in buckets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.system.randomness import sample_rng


class ShapeBatchSampler(Sampler[list[int]]):
    """A `batch_sampler` whose batches hold latents of one shape each, in a new random order every epoch.

    Every row comes once an epoch; batches at the end of a shape are short. With several processes each takes its part
    of the batches, an equal number, for which some batches may come twice.

    Args:
        dataset: The latents.
        batch_size: Rows a batch.
        seed: Seed of the order.
        num_replicas: Number of processes.
        rank: Number of this process.
    """

    def __init__(
        self, dataset: LatentDataset, *, batch_size: int, seed: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank is {rank}; it must be one of 0 to {num_replicas - 1}")
        self._batch_size, self._seed, self._num_replicas, self._rank = batch_size, seed, num_replicas, rank
        self._epoch = 0
        rows: dict[tuple[int, int, int], list[range]] = {}
        for shard in filter(len, dataset.shard_rows()):
            rows.setdefault(dataset.shape(shard.start), []).append(shard)
        self._rows = [np.concatenate([np.arange(r.start, r.stop) for r in ranges]) for ranges in rows.values()]

    def set_epoch(self, epoch: int) -> None:
        """Take another order from here on."""
        self._epoch = epoch

    def __len__(self) -> int:
        num_batches = sum(-(-len(rows) // self._batch_size) for rows in self._rows)
        return -(-num_batches // self._num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        rng = sample_rng(self._epoch, seed=self._seed, stream="latents/batches")
        batches = []
        for rows in self._rows:
            order = rng.permutation(rows)
            batches += [order[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        order = rng.permutation(len(batches))
        for i in range(len(self)):
            yield batches[order[(i * self._num_replicas + self._rank) % len(batches)]].tolist()
