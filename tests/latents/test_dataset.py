"""LatentDataset over shards that the real writer wrote."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ldm_vae.encoding.writer import EncodedBatch, ShardWriter
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.shards import Plan, Row, assemble_index, shard_stem

SHAPE = (3, 4, 6)
SKIPPED = {4, 8, 9, 10, 11}
NUM_IMAGES, SHARD_SIZE = 15, 4
VAE = {"fingerprint": "f", "encoder": "e", "scaling_factor": 0.5, "shift_factor": 0.25}
VAE |= {"latents_mean": None, "latents_std": None}


def make_plan(**changes: object) -> Plan:
    values = {"vae": VAE, "preprocessing": {}, "mode": "moments", "dtype": "float16", "flip": True, "seed": None}
    values |= {"shard_size": SHARD_SIZE, "data": {"num_images": NUM_IMAGES}}
    return Plan(**{**values, **changes})


def write(folder: Path, plan: Plan) -> dict[str, Tensor]:
    """Write a collection with unreadable images, shard 2 being empty; return the exact values by row."""
    generator = torch.Generator().manual_seed(0)
    readable = [i for i in range(NUM_IMAGES) if i not in SKIPPED]
    names = ["mean", "std", "mean_flip", "std_flip"] if plan.mode == "moments" else ["latents", "latents_flip"]
    exact = {name: torch.randn(len(readable), *SHAPE, generator=generator) * 3 + 1 for name in names}
    with ShardWriter(folder, plan=plan, on_written=lambda record: None) as writer:
        for start in range(0, NUM_IMAGES, 2):
            images = range(start, min(start + 2, NUM_IMAGES))
            rows = [
                Row(sample=i, image=i, source=f"a {i}.jpg", label=i % 3, columns={"caption": f"a é {i}"})
                for i in images
            ]
            for row in rows:
                row.reason = "broken" if row.sample in SKIPPED else None
            at = [readable.index(i) for i in images if i in readable]
            shard, offset = divmod(start, SHARD_SIZE)
            writer.add(
                EncodedBatch(
                    stem=shard_stem(shard),
                    rows=rows,
                    tensors={name: values[at] for name, values in exact.items()} if at else {},
                    shape=SHAPE,
                    last=offset + 2 >= SHARD_SIZE or start + 2 >= NUM_IMAGES,
                )
            )
    assemble_index(folder, plan=plan, stems=[shard_stem(shard) for shard in range(4)])
    return exact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents")
    write(path, make_plan())
    return path


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return write(tmp_path_factory.mktemp("exact"), make_plan())


def test_every_row_is_its_image(folder: Path, exact: dict[str, Tensor]) -> None:
    dataset = LatentDataset(folder, normalize="none")
    readable = [i for i in range(NUM_IMAGES) if i not in SKIPPED]
    assert len(dataset) == len(readable)
    for row in (9, 0, 4, 3, -1):
        sample, number = dataset[row], readable[row]
        assert torch.equal(sample.latents, exact["mean"][row].half().float())
        assert (sample.sample, sample.label) == (number, number % 3)
        line = dataset.row(row)
        assert (line["source"], line["columns"]) == (f"a {number}.jpg", {"caption": f"a é {number}"})
        assert line["shard"] == f"{shard_stem(number // SHARD_SIZE)}.safetensors"
        assert torch.equal(dataset.moments(row)["std_flip"], exact["std_flip"][row].half())
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in skipped] == sorted(SKIPPED)
    with safe_open(folder / "latents-00001.safetensors", "pt") as shard:  # the format that safetensors itself reads
        assert torch.equal(shard.get_tensor("mean"), exact["mean"][4:7].half())


def test_statistics_are_exact_over_shards(folder: Path, exact: dict[str, Tensor]) -> None:
    mean, std = (exact[name].half().double().transpose(0, 1).flatten(1) for name in ("mean", "std"))
    plain = LatentDataset(folder).stats()
    torch.testing.assert_close(plain.mean, mean.mean(1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(plain.std, mean.std(1, correction=0), rtol=1e-13, atol=1e-13)
    sampled = LatentDataset(folder, sample=True).stats()
    variance = mean.var(1, correction=0) + std.square().mean(1)
    torch.testing.assert_close(sampled.std, variance.sqrt(), rtol=1e-13, atol=1e-13)
    errors = LatentDataset(folder).index["rounding_error"]
    difference = exact["mean"].half().double() - exact["mean"].double()
    assert errors["mean"]["largest"] == difference.abs().max().item()
    assert errors["mean"]["relative"] == pytest.approx((difference.norm() / exact["mean"].double().norm()).item())


def test_normalization(folder: Path, exact: dict[str, Tensor], tmp_path: Path) -> None:
    raw = exact["mean"][2].half().float()
    dataset = LatentDataset(folder)
    torch.testing.assert_close(dataset[2].latents, (raw - 0.25) * 0.5)
    torch.testing.assert_close(dataset.denormalize(dataset[2].latents[None])[0], raw)
    by_channel = LatentDataset(folder, normalize="channel")
    latents = torch.stack([by_channel[row].latents for row in range(len(by_channel))]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(1, correction=0), torch.ones(3))
    write(tmp_path, make_plan(vae={**VAE, "latents_mean": [1.0, 2.0, 3.0], "latents_std": [2.0, 4.0, 8.0]}))
    expected = (
        (raw - torch.tensor([1.0, 2.0, 3.0])[:, None, None]) * 0.5 / torch.tensor([2.0, 4.0, 8.0])[:, None, None]
    )
    torch.testing.assert_close(LatentDataset(tmp_path)[2].latents, expected)


def test_posterior_samples_depend_on_seed_epoch_and_image_alone(folder: Path, exact: dict[str, Tensor]) -> None:
    dataset = LatentDataset(folder, sample=True, normalize="none", seed=1)
    first = [dataset[row].latents for row in range(len(dataset))]
    again = LatentDataset(folder, sample=True, normalize="none", seed=1)
    assert all(torch.equal(again[row].latents, first[row]) for row in reversed(range(len(dataset))))
    assert not torch.equal(LatentDataset(folder, sample=True, normalize="none", seed=2)[0].latents, first[0])
    noise = []
    for epoch in range(200):
        dataset.set_epoch(epoch)
        noise.append((dataset[5].latents - exact["mean"][5].half().float()) / exact["std"][5].half().float())
    standard = torch.stack(noise)
    assert abs(standard.mean().item()) < 0.05
    assert abs(standard.std().item() - 1) < 0.05
    assert not torch.equal(standard[0], standard[1])


def test_random_flips_take_the_mirrored_twins(folder: Path, exact: dict[str, Tensor]) -> None:
    dataset = LatentDataset(folder, normalize="none", random_flip=True)
    flipped = 0
    for epoch in range(20):
        dataset.set_epoch(epoch)
        for row in range(len(dataset)):
            latents = dataset[row].latents
            is_flipped = torch.equal(latents, exact["mean_flip"][row].half().float())
            assert is_flipped or torch.equal(latents, exact["mean"][row].half().float())
            flipped += is_flipped
    assert 60 < flipped < 140  # of 200


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_storage_types_and_modes(tmp_path: Path, dtype: str) -> None:
    exact = write(tmp_path, make_plan(mode="sample", dtype=dtype, seed=3))
    latents = LatentDataset(tmp_path, normalize="none")[4].latents
    assert torch.equal(latents, exact["latents"][4].to(getattr(torch, dtype)).float())
    with pytest.raises(ValueError, match="mode sample, which can't be sampled"):
        LatentDataset(tmp_path, sample=True)


def test_workers_and_processes_see_each_row_once_and_follow_the_epoch(folder: Path) -> None:
    dataset = LatentDataset(folder, sample=True)
    dataset[0]  # a mapped shard doesn't hinder pickling
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3].latents, dataset[3].latents)
    loaders = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank)
        loaders.append(
            DataLoader(
                dataset,
                batch_size=2,
                sampler=sampler,
                num_workers=1,
                multiprocessing_context=["spawn", "fork"][rank],
                persistent_workers=True,
            )
        )
    for epoch in range(2):
        dataset.set_epoch(epoch)  # the workers run already in epoch 1
        seen = []
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                for latents, number in zip(batch.latents, batch.sample, strict=True):
                    row = [i for i in range(NUM_IMAGES) if i not in SKIPPED].index(int(number))
                    assert torch.equal(latents, dataset[row].latents)
                    seen.append(row)
        assert sorted(seen) == list(range(len(dataset)))


def test_a_thousand_shards_are_opened_when_read_and_not_kept_open(tmp_path: Path) -> None:
    write(tmp_path, make_plan(shard_size=NUM_IMAGES))
    index = json.loads((tmp_path / "index.json").read_text())
    entry = index["shards"][0]
    for shard in range(4, 1000):
        os.link(tmp_path / entry["file"], tmp_path / f"{shard_stem(shard)}.safetensors")
    index["shards"] = [entry | {"file": f"{shard_stem(0 if s < 4 else s)}.safetensors"} for s in range(1000)]
    (tmp_path / "index.json").write_text(json.dumps(index))
    dataset = LatentDataset(tmp_path)
    assert len(dataset) == 1000 * entry["count"]
    open_files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    latents = [dataset[row].latents for row in range(0, len(dataset), entry["count"])]
    assert all(torch.equal(other, latents[0]) for other in latents)
    assert not open_files or len(os.listdir("/proc/self/fd")) <= open_files  # mapped


def test_what_is_not_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no index\.json"):
        LatentDataset(tmp_path)
    write(tmp_path, make_plan())
    shard = tmp_path / "latents-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    dataset = LatentDataset(tmp_path)
    assert dataset[0].sample == 0
    with pytest.raises(ValueError, match=rf"latents-00001\.safetensors has {len(content) - 1} bytes instead of"):
        dataset[4]
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        dataset[4]
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match="isn't finished: start the same encode again"):
        LatentDataset(tmp_path)


def test_shards_are_the_same_bytes_whoever_writes_them(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, make_plan())
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(folder))
    for name in os.listdir(folder):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert np.frombuffer((folder / "latents-00000.safetensors").read_bytes()[:8], "<u8")[0] % 8 == 0
