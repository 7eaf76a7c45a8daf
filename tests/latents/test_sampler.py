"""Batches of one shape, over processes and epochs."""

import pytest
import torch
from torch.utils.data import DataLoader

from ldm_vae.encoding.writer import EncodedBatch, ShardWriter
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.index import write_index
from ldm_vae.latents.sampler import ShapeBatchSampler
from ldm_vae.latents.shards import Row, shard_stem
from tests.latents.test_dataset import make_plan

SHAPES = [(4, 2, 3), (4, 2, 3), (4, 3, 2), (4, 4, 4)]
COUNTS = [5, 2, 4, 1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    folder = tmp_path_factory.mktemp("latents")
    plan = make_plan(mode="mean", flip=False, shard_size=5)
    with ShardWriter(folder, plan=plan, on_written=lambda record: None) as writer:
        for shard, (shape, count) in enumerate(zip(SHAPES, COUNTS, strict=True)):
            rows = [Row(sample=5 * shard + i, image=i, source=f"{shard}-{i}") for i in range(count)]
            tensors = {"latents": torch.full((count, *shape), float(shard))}
            writer.add(EncodedBatch(stem=shard_stem(shard), rows=rows, tensors=tensors, shape=shape, last=True))
    write_index(folder, plan=plan, stems=[shard_stem(shard) for shard in range(4)])
    return LatentDataset(folder, normalize="none")


def test_every_row_comes_once_in_batches_of_one_shape(dataset: LatentDataset) -> None:
    sampler = ShapeBatchSampler(dataset, batch_size=3)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 3 + 2 + 1
        assert sorted(sum(batches, [])) == list(range(12))  # noqa: RUF017
        orders.append(batches)
        for batch in DataLoader(dataset, batch_sampler=sampler, num_workers=epoch):
            assert 0 < len(batch.latents) <= 3
    assert orders[0] != orders[1]


def test_processes_divide_the_batches(dataset: LatentDataset) -> None:
    whole = list(ShapeBatchSampler(dataset, batch_size=3))
    parts = [list(ShapeBatchSampler(dataset, batch_size=3, num_replicas=4, rank=rank)) for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2]  # of 6 batches, so two come twice
    dealt = [parts[i % 4][i // 4] for i in range(8)]
    assert dealt == whole + whole[:2]
    with pytest.raises(ValueError, match="rank is 4"):
        ShapeBatchSampler(dataset, batch_size=3, num_replicas=4, rank=4)
