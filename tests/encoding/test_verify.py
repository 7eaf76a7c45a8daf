"""`latents verify`: every way in which a folder of latents can be wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm_vae.config.commands.latents import LatentsVerifyOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.verify import LatentsDamaged, verify
from ldm_vae.latents.check import check_folder
from ldm_vae.latents.shards import Plan, assemble_index, read_record, write_shard
from tests.encodings import options, save_vae
from tests.pictures import save_pictures


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vae(tmp_path_factory.mktemp("vae"))


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
    encode(options(vae, photos, tmp_path / "tiled", tile=True))
    shutil.copy(tmp_path / "tiled" / shard.name, shard)
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
    for suffix in (".json", ".safetensors"):
        shutil.copy(folder / f"latents-00001{suffix}", folder / f"latents-00002{suffix}")
    record = json.loads((folder / "latents-00002.json").read_bytes())
    (folder / "latents-00002.json").write_text(json.dumps({**record, "stem": "latents-00002"}))
    index = json.loads((folder / "index.json").read_bytes())
    index["shards"][2] = {**index["shards"][1], "file": "latents-00002.safetensors"}
    (folder / "index.json").write_text(json.dumps(index))
    assert ("duplicate", "index.json") in found(folder)


def test_deep_finds_latents_of_other_images(folder: Path, vae: str, photos: str, tmp_path: Path) -> None:
    """Whole to the bit, but not what the images encode to: two rows of each shard exchanged."""
    plan_values = json.loads((folder / "plan.json").read_bytes())
    plan = Plan(**{key: value for key, value in plan_values.items() if key not in ("format", "version")})
    stems = [f"latents-{shard:05d}" for shard in range(3)]
    for stem in stems:
        record = read_record(folder, stem=stem, plan_digest=plan.digest)
        assert record is not None
        tensors = load_file(folder / f"{stem}.safetensors")
        tensors["mean"] = torch.roll(tensors["mean"], 1, dims=0).clone()
        write_shard(
            folder,
            stem=stem,
            plan=plan,
            tensors=tensors,
            rows=record.rows,
            moments=record.moments,
            rounding=record.rounding,
            shape=(record.shape[0], record.shape[1], record.shape[2]),
        )
    assemble_index(folder, plan=plan, stems=stems)
    assert found(folder) == set()
    with pytest.raises(LatentsDamaged, match=r"row 0 is not what 0000\.png encodes to"):
        verify(LatentsVerifyOptions(latents=str(folder), deep=True, vae=vae, data=photos))
    other = save_vae(tmp_path / "vae", seed=1)
    with pytest.raises(ValueError, match="is not the autoencoder that"):
        verify(LatentsVerifyOptions(latents=str(folder), deep=True, vae=other, data=photos))
