"""Folders of latents that are not what was written: cut off, exchanged, flipped bits, foreign indices."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.sealed import seal, unseal
from tests.latents.written import VAE, make_plan, write


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


def test_exchanged_and_foreign_shards_are_named(folder: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(folder, tmp_path / "here"))
    write_other = tmp_path / "other"
    write_other.mkdir()
    write(write_other, make_plan(vae={**VAE, "encoder": "another"}))
    first, second = here / "latents-00000.safetensors", here / "latents-00001.safetensors"
    content = first.read_bytes()
    assert len(content) == first.stat().st_size
    shutil.copy(write_other / first.name, first)
    with pytest.raises(ValueError, match=r"latents-00000\.safetensors belongs to another output; `ldm-vae latents"):
        LatentDataset(here)[0]
    assert LatentDataset(here)[4].sample == 5  # the other shards are read
    first.write_bytes(content.replace(b"latents-00000", b"latents-00001"))  # another's, of the same size
    with pytest.raises(ValueError, match=r"latents-00000\.safetensors is a copy of latents-00001; "):
        LatentDataset(here)[0]
    for damaged in (b"\0" * 16 + content[16:], content.replace(b'"BF16"', b'"F16"').replace(b"F16", b"Q16")):
        first.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"latents-00000\.safetensors is damaged \("):
            LatentDataset(here)[0]
    second.unlink()
    second.symlink_to(folder / second.name)
    with pytest.raises(ValueError, match="leads out of its folder through a link"):
        LatentDataset(here)[4]


def test_flipped_bits_in_rows_are_found_on_request(folder: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(folder, tmp_path / "here"))
    clean = LatentDataset(here, verify=True)
    assert all(torch.equal(clean[row].latents, LatentDataset(here)[row].latents) for row in range(len(clean)))
    path = here / "latents-00001.safetensors"
    content = path.read_bytes()
    start = 8 + int(np.frombuffer(content[:8], "<u8")[0])
    rng = np.random.default_rng(0)
    for bit in rng.integers(8 * start, 8 * len(content), 50):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        dataset = LatentDataset(here, verify=True)
        with pytest.raises(ValueError, match=r"latents-00001\.safetensors: row \d is damaged, its checksum"):
            [dataset[row] for row in range(4, len(dataset))]
        assert [dataset[row].sample for row in range(4)] == [0, 1, 2, 3]


def test_what_another_writes_into_an_index_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(folder, tmp_path / "here"))
    index = unseal((here / "index.json").read_bytes())
    assert index is not None
    shard = index["shards"][0]
    for changes in (
        {"shards": [{**shard, "file": "../latents-00000.safetensors"}]},
        {"shards": [{**shard, "file": "/etc/passwd"}]},
        {"shards": [{**shard, "count": -1}]},
        {"shards": [{**shard, "shape": "abc"}]},
        {"shards": [{**shard, "size": 1e300}]},
        {"shards": {"file": 1}},
        {"shards": None},
        {"mode": "moment"},
        {"vae": []},
        {"num_rows": 3},
        {"stats": {}},
        {"version": 2},
    ):
        (here / "index.json").write_bytes(seal({**index, **changes}))
        with pytest.raises(ValueError, match=r"index\.json is") as error:
            LatentDataset(here)
        assert "\n" not in str(error.value)
    for content in (b"", b"{}", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"digest": 1}'):
        (here / "index.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.json is damaged: start the same encode again"):
            LatentDataset(here)
