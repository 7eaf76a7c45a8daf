"""The thread that writes shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ldm_vae.encoding.writer import EncodedBatch, ShardWriter
from ldm_vae.latents.shards import Row, shard_stem
from tests.latents.written import SHAPE, make_plan


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_writer_takes_one_thread_of_torch_and_leaves_others_theirs(tmp_path: Path, two_threads: None) -> None:
    seen: list[int] = []
    batch = EncodedBatch(
        stem=shard_stem(0),
        rows=[Row(sample=0, image=0, source="a.jpg")],
        tensors={name: torch.rand(1, *SHAPE) for name in ("mean", "std")},
        shape=SHAPE,
        last=True,
    )
    plan = make_plan(flip=False, data={"num_images": 1})
    with ShardWriter(tmp_path, plan=plan, on_written=lambda record: seen.append(torch.get_num_threads())) as writer:
        writer.add(batch)
    assert seen == [1]
    assert torch.get_num_threads() == 2
