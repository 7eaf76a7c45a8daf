"""`latents verify`: every way in which a folder of latents can be wrong."""

import functools
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ldm_vae.config.commands.latents import LatentsVerifyOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.verify import LatentsDamaged, verify
from ldm_vae.encoding.writer import write_latents, write_shard
from ldm_vae.latents.check import check_folder
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.index import write_index
from ldm_vae.latents.sealed import read_sealed, seal, unseal
from ldm_vae.latents.shards import Plan, read_record
from ldm_vae.system.store import LocalStore
from tests.encodings import contents, finish, options, save_vae, start_encodes
from tests.pictures import save_pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pictures(tmp_path_factory.mktemp("data") / "photos", count=10)


@pytest.fixture(scope="module")
def encoded(vae: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    encode(options(vae, photos, folder))
    return folder


@pytest.fixture
def folder(encoded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoded, tmp_path / "latents"))


def found(folder: Path) -> set[tuple[str, str]]:
    return {(problem.kind, problem.file) for problem in check_folder(folder)}


def test_a_whole_folder(folder: Path, vae: str, photos: str) -> None:
    report = verify(LatentsVerifyOptions(latents=str(folder), deep=True, vae=vae, data=photos))
    assert (report.num_rows, report.num_shards, report.deep_images) == (10, 3, 10)
    assert report.largest_error < 1e-4


def test_truncated_flipped_missing_duplicate_and_foreign_shards(
    folder: Path, vae: str, photos: str, tmp_path: Path
) -> None:
    shard = folder / "latents-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-8])
    assert found(folder) == {("damaged", shard.name)}
    flipped = bytearray(content)
    flipped[-100] ^= 1
    shard.write_bytes(flipped)
    assert found(folder) == {("damaged", shard.name)}
    with pytest.raises(LatentsDamaged, match=r"1 damaged\. damaged: latents-00000\.safetensors: its digest"):
        verify(LatentsVerifyOptions(latents=str(folder)))
    shard.unlink()
    assert found(folder) == {("missing", shard.name)}
    shutil.copy(folder / "latents-00001.safetensors", shard)
    assert found(folder) == {("duplicate", shard.name)}
    encode(options(vae, photos, tmp_path / "other", seed=1, mode="sample"))
    shutil.copy(tmp_path / "other" / shard.name, shard)
    assert found(folder) == {("damaged", shard.name)}  # of another size; of the same:
    another_vae = save_vae(tmp_path / "another_vae", seed=1)
    encode(options(another_vae, photos, tmp_path / "another", seed=1))
    shutil.copy(tmp_path / "another" / shard.name, shard)
    assert found(folder) == {("foreign", shard.name)}
    shard.write_bytes(content)
    shutil.copy(shard, folder / "latents-00000 (copy).safetensors")
    shutil.copy(tmp_path / "other" / shard.name, folder / "latents-00007.safetensors")
    assert found(folder) == {
        ("duplicate", "latents-00000 (copy).safetensors"),
        ("foreign", "latents-00007.safetensors"),
    }


def test_records_lists_and_unfinished_outputs(folder: Path) -> None:
    (folder / "samples.jsonl").write_text("")
    (folder / "skipped.jsonl").unlink()
    (folder / "latents-00001.json").write_text("{}")
    assert found(folder) == {
        ("damaged", "samples.jsonl"),
        ("missing", "skipped.jsonl"),
        ("missing", "latents-00001.json"),
    }
    (folder / "index.json").unlink()
    assert found(folder) == {("unfinished", "index.json"), ("unfinished", "latents-00001.safetensors")}
    with pytest.raises(ValueError, match="it is no folder that `ldm-vae encode` wrote"):
        check_folder(folder.parent)


def test_an_image_with_two_rows(folder: Path) -> None:
    """By somebody who seals what they write."""
    for suffix in (".json", ".safetensors"):
        shutil.copy(folder / f"latents-00001{suffix}", folder / f"latents-00002{suffix}")
    record = unseal((folder / "latents-00002.json").read_bytes())
    index = unseal((folder / "index.json").read_bytes())
    assert record is not None
    assert index is not None
    (folder / "latents-00002.json").write_bytes(seal({**record, "stem": "latents-00002"}))
    index["shards"][2] = {**index["shards"][1], "file": "latents-00002.safetensors"}
    index["num_rows"] = sum(shard["count"] for shard in index["shards"])
    (folder / "index.json").write_bytes(seal(index))
    assert ("duplicate", "index.json") in found(folder)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def test_no_flipped_bit_of_an_index_changes_anything_unseen(folder: Path) -> None:
    path = folder / "index.json"
    content = path.read_bytes()
    statistics = unseal(content)
    harmless = 0
    for bit in np.random.default_rng(1).integers(0, 8 * len(content), 700):
        flip(path, int(bit))
        problems = found(folder)
        if problems:
            assert problems == {("damaged", "index.json")}
            with pytest.raises(ValueError, match=r"index\.json is damaged"):
                LatentDataset(folder)
        else:  # of two ways to write the same number
            harmless += 1
            assert unseal(path.read_bytes()) == statistics
        path.write_bytes(content)
    assert harmless < 10


def test_what_verify_names_is_mended_by_the_same_encode(folder: Path, vae: str, photos: str) -> None:
    before = contents(folder)
    rng = np.random.default_rng(2)
    names = ["plan.json", "latents-00001.json", "latents-00001.safetensors", "samples.jsonl", "index.json"]
    for name in names * 4:
        path = folder / name
        for bit in rng.integers(0, 8 * len(before[name]), 3):
            flip(path, int(bit))
        file = {"latents-00001.json": {("missing", name)}}.get(name, {("damaged", name)})
        assert found(folder) == file
        with pytest.raises(LatentsDamaged, match=r"Start the same encode again: it mends this$"):
            verify(LatentsVerifyOptions(latents=str(folder)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that plan.json is written anew
            summary = encode(options(vae, photos, folder))
        assert summary.encoded_shards == name.startswith("latents")
        assert summary.damaged_shards == name.endswith(".safetensors")
        assert contents(folder) == before
    for name in names:
        flip(folder / name, 123)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encode(options(vae, photos, folder))
    assert contents(folder) == before


def test_a_damaged_plan_is_not_taken_for_another_encodes(folder: Path, vae: str, photos: str) -> None:
    flip(folder / "plan.json", 200)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"plan\.json is damaged, and none of the shards there is of this encode"):
        encode(options(vae, photos, folder, mode="mean"))
    assert contents(folder) == before


def test_processes_divide_the_digests_among_themselves(folder: Path, vae: str, photos: str) -> None:
    before = contents(folder)
    for name in ("latents-00000.safetensors", "latents-00002.safetensors"):
        flip(folder / name, 8 * len(before[name]) - 100)
    assert finish(start_encodes(options(vae, photos, folder), count=3)) == [0, 0, 0]
    assert contents(folder) == before


def test_deep_finds_latents_of_other_images(folder: Path, vae: str, photos: str, tmp_path: Path) -> None:
    """Whole to the bit, but not what the images encode to: two rows of each shard exchanged."""
    plan_values = read_sealed(LocalStore(folder), "plan.json")
    assert plan_values is not None
    plan = Plan(**{key: value for key, value in plan_values.items() if key not in ("format", "version")})
    stems = [f"latents-{shard:05d}" for shard in range(3)]
    for stem in stems:
        record = read_record(LocalStore(folder), stem=stem, plan_digest=plan.digest)
        assert record is not None
        tensors = load_file(folder / f"{stem}.safetensors")
        latents = {"mean": torch.roll(tensors["mean"], 1, dims=0).clone(), "std": tensors["std"]}
        readable = [row for row in record.rows if row.reason is None]
        write_shard(
            LocalStore(folder),
            stem=stem,
            plan=plan,
            write=functools.partial(write_latents, latents=latents, rows=readable, plan=plan, stem=stem),
            rows=record.rows,
            moments=record.moments,
            rounding=record.rounding,
            shape=(record.shape[0], record.shape[1], record.shape[2]),
        )
    write_index(folder, plan=plan, stems=stems)
    assert found(folder) == set()
    with pytest.raises(LatentsDamaged, match=r"row 0 is not what 0000\.png encodes to"):
        verify(LatentsVerifyOptions(latents=str(folder), deep=True, vae=vae, data=photos))
    other = save_vae(tmp_path / "vae", seed=1)
    with pytest.raises(ValueError, match="is not the autoencoder that"):
        verify(LatentsVerifyOptions(latents=str(folder), deep=True, vae=other, data=photos))
