"""Outputs of many shards: nothing beside the shards grows with the rows, and readers don't notice."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_vae.latents import shard_table
from ldm_vae.latents.check import check_folder
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.index import read_index_totals, write_index
from ldm_vae.latents.sampler import ShapeBatchSampler
from ldm_vae.latents.sealed import seal
from ldm_vae.latents.shard_table import ShardEntries, ShardTable
from ldm_vae.latents.shards import shard_stem
from ldm_vae.system.store import LocalStore
from tests.latents.written import make_plan

STEMS = [shard_stem(shard) for shard in range(4)]


@pytest.fixture
def many(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the other tests, indexed as if four shards were many."""
    (tmp_path / "many").mkdir()
    for path in folder.glob("[lp]*"):
        shutil.copy(path, tmp_path / "many")
    (tmp_path / "many" / "plan.json").write_bytes(seal(make_plan().to_json()))
    monkeypatch.setattr(shard_table, "MANY_SHARDS", 4)
    write_index(tmp_path / "many", plan=make_plan(), stems=STEMS)
    return tmp_path / "many"


def test_readers_find_the_same(folder: Path, many: Path) -> None:
    assert {"samples.jsonl", "skipped.jsonl"}.isdisjoint(os.listdir(many))
    few, dataset = LatentDataset(folder, verify=True), LatentDataset(many, verify=True)
    assert len(dataset) == len(few)
    for row in range(len(few)):
        assert torch.equal(dataset[row].latents, few[row].latents)
        assert dataset.row(row) == few.row(row)
        assert dataset.shape(row) == few.shape(row)
    assert list(dataset.rows()) == list(few.rows())
    assert list(dataset.shards) == few.index["shards"]
    assert dataset.shards.shapes() == few.shards.shapes()
    assert torch.equal(dataset.stats().mean, few.stats().mean)
    batches = [list(ShapeBatchSampler(each, batch_size=2)) for each in (few, dataset)]
    assert batches[0] == batches[1]
    totals = read_index_totals(LocalStore(many), plan=make_plan())
    assert totals == read_index_totals(LocalStore(folder), plan=make_plan())
    assert check_folder(many) == []


def test_an_index_does_not_grow_with_the_shards(many: Path) -> None:
    index = json.loads((many / "index.json").read_text())
    assert index["shards"] == {"file": "shards.npy", "count": 4}
    entries = ShardEntries(shard_table.MANY_SHARDS)
    assert entries.array.itemsize * 1_000_000 < 100e6


def test_a_changed_array_is_found(many: Path) -> None:
    path = many / "shards.npy"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shards\.npy is not the index's \(its digest is another\); start the same"):
        LatentDataset(many)
    assert [(problem.kind, problem.file) for problem in check_folder(many)] == [("damaged", "index.json")]
    path.unlink()
    with pytest.raises(ValueError, match=r"shards\.npy is missing; start the same encode again"):
        LatentDataset(many)
    assert read_index_totals(LocalStore(many), plan=make_plan()) is None


@pytest.mark.parametrize("stem", ["latents-00000", "latents-1234567", "latents-00012-00345", "latents-123456-1234567"])
def test_every_name_of_a_shard_comes_back(stem: str) -> None:
    entries = ShardEntries(1)
    entries.add(stem=stem, count=3, shape=[4, 2, 2], size=2**40, sha256="ab" * 32)
    assert ShardTable(entries.array)[0] == {
        "file": f"{stem}.safetensors", "count": 3, "shape": [4, 2, 2], "size": 2**40, "sha256": "ab" * 32,
    }  # fmt: skip
    assert np.array_equal(ShardTable(entries.array).starts, [0, 3])
