"""LatentDataset over shards that the real writer wrote."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.index import write_index
from ldm_vae.latents.shards import read_record, shard_stem
from ldm_vae.latents.statistics import ChannelMoments, Rounding, RowMoments, RowRounding
from ldm_vae.system.store import LocalStore
from tests.latents.written import NUM_IMAGES, SHARD_SIZE, SKIPPED, VAE, make_plan, write


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


def test_mirrored_samples_are_of_the_mirrored_posterior(folder: Path, exact: dict[str, Tensor]) -> None:
    """With the same noise."""
    dataset = LatentDataset(folder, sample=True, normalize="none")
    for row in range(len(dataset)):
        mean, std, mean_flip, std_flip = (
            exact[name][row].half().float() for name in ("mean", "std", "mean_flip", "std_flip")
        )
        noise = (dataset.latents(row) - mean) / std
        expected = mean_flip + std_flip * noise
        torch.testing.assert_close(dataset.latents(row, flipped=True), expected, rtol=1e-3, atol=1e-3)


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


def test_many_shards_are_opened_when_read_and_not_kept_open(tmp_path: Path) -> None:
    """Real shards, all of one content."""
    many = 300
    plan = make_plan(shard_size=NUM_IMAGES)
    write(tmp_path, make_plan())
    tensors = load_file(tmp_path / "latents-00000.safetensors")
    record = read_record(LocalStore(tmp_path), stem="latents-00000", plan_digest=make_plan().digest)
    assert record is not None
    record.plan = plan.digest
    folder = tmp_path / "many"
    folder.mkdir()
    for shard in range(many):
        origin = {"plan": plan.digest, "stem": shard_stem(shard)}
        path = folder / f"{shard_stem(shard)}.safetensors"
        save_file(tensors, path, metadata={"ldm_vae": json.dumps(origin)})
        record.stem, record.size = shard_stem(shard), path.stat().st_size
        (folder / f"{shard_stem(shard)}.json").write_bytes(record.to_bytes())
    write_index(folder, plan=plan, stems=[shard_stem(shard) for shard in range(many)])
    dataset = LatentDataset(folder)
    assert len(dataset) == 4 * many
    open_files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    latents = [dataset[row].latents for row in range(0, len(dataset), 4)]
    assert all(torch.equal(other, latents[0]) for other in latents)
    assert not open_files or len(os.listdir("/proc/self/fd")) <= open_files  # mapped


def test_shards_are_the_same_bytes_whoever_writes_them(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, make_plan())
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(folder))
    for name in os.listdir(folder):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert np.frombuffer((folder / "latents-00000.safetensors").read_bytes()[:8], "<u8")[0] % 8 == 0


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("side", [1, 3, 16])
def test_statistics_do_not_depend_on_the_batches(batch: int, side: int) -> None:
    generator = torch.Generator().manual_seed(side)
    values = torch.randn(7, 4, side, side, generator=generator) * 5 + 100
    std = torch.rand(7, 4, side, side, generator=generator)
    parts = range(0, 7, batch)
    moments = ChannelMoments.of_rows([RowMoments.of(values[i : i + batch], std=std[i : i + batch]) for i in parts])
    assert moments == ChannelMoments.of(values, std=std)
    stored = values.half()
    rounding = [RowRounding.of(values[i : i + batch], stored=stored[i : i + batch]) for i in parts]
    assert Rounding.of_rows(rounding) == Rounding.of_rows([RowRounding.of(values, stored=stored)])
