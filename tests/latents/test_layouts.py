"""`latents export`: each layout as its consumer finds and reads it."""

import json
import uuid
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors import safe_open

from ldm_vae.config.commands.latents import LatentsExportOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts import export as export_module
from ldm_vae.latents.layouts.export import export_latents
from ldm_vae.system.places import open_store
from tests.encodings import contents, options, save_captioned, save_vae
from tests.stores import check_ends_of_writing, fresh_places, memory_contents

SIZES = [(24, 20), (20, 30), (16, 16), (40, 20), (30, 20), (21, 20)]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_captioned(tmp_path_factory.mktemp("data"), sizes=SIZES)


@pytest.fixture(scope="module")
def latents(vae: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("latents")
    encode(options(vae, data, folder, flip=True, dtype="float16"))
    return str(folder)


def test_lightningdit(latents: str, tmp_path: Path) -> None:
    export_latents(LatentsExportOptions(latents=latents, output=str(tmp_path), layout="lightningdit", sample=True))
    dataset = LatentDataset(latents, sample=True, normalize="none")
    rows = 0
    for path in sorted(glob(str(tmp_path / "*.safetensors"))):
        with safe_open(path, framework="pt", device="cpu") as file:
            for i in range(file.get_slice("labels").get_shape()[0]):
                assert torch.equal(file.get_slice("latents")[i : i + 1][0], dataset.latents(rows))
                assert torch.equal(file.get_slice("latents_flip")[i : i + 1][0], dataset.latents(rows, flipped=True))
                assert int(file.get_slice("labels")[i : i + 1]) == dataset[rows].label
                rows += 1
    assert rows == len(dataset) == 6
    stats = torch.load(tmp_path / "latents_stats.pt")
    means = LatentDataset(latents, sample=True).stats()
    assert stats["mean"].shape == stats["std"].shape == (1, 4, 1, 1)
    torch.testing.assert_close(stats["mean"].flatten(), means.mean.float())
    torch.testing.assert_close(stats["std"].flatten(), means.std.float())


def check_rows(loaded: Any, dataset: LatentDataset, *, suffix: str) -> None:
    assert len(loaded) == len(dataset)
    for row, found in enumerate(loaded):
        for name, tensor in dataset.moments(row).items():
            assert np.array_equal(np.asarray(found[name + suffix], dtype=np.float32), tensor.float().numpy())


def test_parquet(latents: str, tmp_path: Path) -> None:
    output = tmp_path / "parquet"
    export_latents(LatentsExportOptions(latents=latents, output=str(output), layout="parquet"))
    loaded = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    dataset = LatentDataset(latents, normalize="none")
    check_rows(loaded, dataset, suffix="")
    assert loaded.features["mean"] == datasets.Array3D(shape=(4, 8, 8), dtype="float16")
    assert loaded["label"][:] == [0, 0, 0, 0, 1, 1]
    assert loaded["source"][:] == [line["source"] for line in dataset.rows()]
    assert loaded["caption"][:] == ["nº 0", "nº 1", None, "nº 3", "nº 4", "nº 5"]
    assert loaded["rating"][:] == [i / 2 for i in range(6)]
    assert loaded["sample"][:] == [line["sample"] for line in dataset.rows()]


def test_webdataset(latents: str, tmp_path: Path) -> None:
    output = tmp_path / "tars"
    export_latents(LatentsExportOptions(latents=latents, output=str(output), layout="webdataset"))
    tars = sorted(map(str, output.glob("*.tar")))
    loaded = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path / "cache"))
    check_rows(loaded, LatentDataset(latents, normalize="none"), suffix=".npy")
    assert loaded["cls"][:] == [0, 0, 0, 0, 1, 1]
    assert loaded["json"][4]["caption"] == "nº 4"


def test_buckets_and_what_is_refused(vae: str, data: str, latents: str, tmp_path: Path) -> None:
    encode(options(vae, data, tmp_path / "buckets", buckets=True, bucket_step=4, dtype="bfloat16", flip=True))
    buckets, out = str(tmp_path / "buckets"), str(tmp_path / "out")
    export_latents(LatentsExportOptions(latents=buckets, output=out, layout="parquet"))
    loaded = datasets.load_dataset(out, split="train", cache_dir=str(tmp_path / "cache"))
    check_rows(loaded, LatentDataset(buckets, normalize="none"), suffix="")
    with pytest.raises(ValueError, match=r"holds other things .*; take an empty folder, or overwrite it"):
        export_latents(LatentsExportOptions(latents=latents, output=out, layout="webdataset"))
    (tmp_path / "out" / "mine.txt").write_text("kept")
    export_latents(LatentsExportOptions(latents=latents, output=out, layout="webdataset", overwrite=True))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".ldm-vae-latents-export", "mine.txt", "latents-00000.tar", "latents-00001.tar"}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "train-00000-of-00002.parquet").write_text("kept")
    with pytest.raises(ValueError, match=r"holds train-00000-of-00002\.parquet, which no latents export wrote"):
        export_latents(LatentsExportOptions(latents=latents, output=str(mine), layout="parquet", overwrite=True))
    assert [path.name for path in mine.iterdir()] == ["train-00000-of-00002.parquet"]
    with pytest.raises(ValueError, match="buckets of several shapes, for which lightningdit has no place"):
        export_latents(LatentsExportOptions(latents=buckets, output=str(tmp_path / "a"), layout="lightningdit"))
    with pytest.raises(ValueError, match="sample is not for parquet"):
        export_latents(LatentsExportOptions(latents=latents, output=out, layout="parquet", sample=True))
    encode(options(vae, data, tmp_path / "plain"))
    with pytest.raises(ValueError, match="no mirrored latents, which lightningdit needs"):
        export_latents(
            LatentsExportOptions(latents=str(tmp_path / "plain"), output=str(tmp_path / "b"), layout="lightningdit")
        )


def read_mds(folder: Path) -> list[dict[str, object]]:
    """Return the samples of MDS shards, by the lines of mosaicml-streaming's MDSReader (0.13) and its encodings."""

    def decode(encoding: str, data: bytes) -> object:
        kind, _, arguments = encoding.partition(":")
        if kind == "ndarray":
            dtype, _, shape = arguments.partition(":")
            if shape:
                return np.frombuffer(data, dtype).reshape([int(side) for side in shape.split(",")])
            sides = np.frombuffer(data[1 : 1 + (data[0] >> 2) * 2 ** (data[0] % 4)], f"uint{8 << data[0] % 4}")
            return np.frombuffer(data[1 + sides.nbytes :], dtype).reshape(sides)
        plain = {"str": bytes.decode, "json": json.loads, "int": lambda value: int(np.frombuffer(value, np.int64)[0]),
                 "float64": lambda value: float(np.frombuffer(value, np.float64)[0])}  # fmt: skip
        return plain[kind](data)

    samples = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        content = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(content) == shard["raw_data"]["bytes"]
        offsets = np.frombuffer(content[4 : 8 + 4 * shard["samples"]], np.uint32)
        for begin, end in pairwise(offsets):
            data, index, sizes = content[begin:end], 0, []
            for size in shard["column_sizes"]:
                sizes.append(size or int(np.frombuffer(data[index : index + 4], np.uint32)[0]))
                index += 0 if size else 4
            sample = {}
            for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
                sample[name] = decode(encoding, data[index : index + size])
                index += size
            assert index == len(data)
            samples.append(sample)
    return samples


def test_mds(vae: str, data: str, latents: str, tmp_path: Path) -> None:
    encode(options(vae, data, tmp_path / "buckets", buckets=True, bucket_step=4, dtype="bfloat16"))
    for folder, output in ((latents, tmp_path / "mds"), (str(tmp_path / "buckets"), tmp_path / "mds-buckets")):
        export_latents(LatentsExportOptions(latents=folder, output=str(output), layout="mds"))
        dataset, samples = LatentDataset(folder, normalize="none"), read_mds(output)
        check_rows(samples, dataset, suffix="")
        for sample, line in zip(samples, dataset.rows(), strict=True):
            assert (sample["label"], sample["sample"]) == (line["label"], line["sample"])
            assert sample["source"] == line["source"]
            assert sample["caption"] == line["columns"].get("caption")
            assert sample["rating"] == line["columns"]["rating"]


def test_mds_as_its_own_package_reads_it(latents: str, tmp_path: Path) -> None:
    """Where it is installed; it wants older libraries than ours."""
    streaming = pytest.importorskip("streaming")
    export_latents(LatentsExportOptions(latents=latents, output=str(tmp_path / "mds"), layout="mds"))
    loaded = streaming.StreamingDataset(local=str(tmp_path / "mds"), shuffle=False, batch_size=1)
    check_rows([loaded[row] for row in range(len(loaded))], LatentDataset(latents, normalize="none"), suffix="")


@pytest.mark.parametrize(
    ("layout", "place", "after"),
    [
        ("lightningdit", "memory", True),
        ("mds", "memory", False),
        ("parquet", "here", False),
        ("webdataset", "here", True),
    ],
)
def test_a_process_may_end_at_any_call_of_the_store(
    latents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, place: str, after: bool
) -> None:
    """Each file that is there then is whole, a list comes after what it names, and `overwrite` finishes."""
    arguments: dict[str, Any] = {"latents": latents, "layout": layout}
    export_latents(LatentsExportOptions(output=str(tmp_path / "whole"), **arguments))
    expected = contents(tmp_path / "whole")
    left = check_ends_of_writing(
        export_module,
        lambda output, overwrite: export_latents(
            LatentsExportOptions(output=output, overwrite=overwrite, **arguments)
        ),
        expected=expected,
        fresh=fresh_places(tmp_path, place=place),
        after=after,
    )
    assert len(left) >= 3
    for there in left:
        assert not there.keys() & {"index.json", "latents_stats.pt"} or len(there) == len(expected)


@pytest.mark.parametrize("layout", ["lightningdit", "mds", "parquet", "webdataset"])
def test_an_address_gets_the_bytes_of_a_folder(latents: str, tmp_path: Path, layout: str) -> None:
    address = f"memory://{uuid.uuid4().hex}/export"
    for output in (str(tmp_path / "here"), address):
        export_latents(LatentsExportOptions(latents=latents, output=output, layout=layout))
    here, there = contents(tmp_path / "here"), memory_contents(address)
    assert here.keys() == there.keys()
    assert all(there[name] == here[name] for name in here if not name.endswith((".tar", ".pt")))
    with pytest.raises(ValueError, match=rf"output {address} holds other things"):
        export_latents(LatentsExportOptions(latents=latents, output=address, layout=layout))
    open_store(address).write_whole("mine.txt", b"kept")
    export_latents(LatentsExportOptions(latents=latents, output=address, layout="mds", overwrite=True))
    assert set(memory_contents(address)) == {
        ".ldm-vae-latents-export", "mine.txt", "index.json", "shard.00000.mds", "shard.00001.mds",
    }  # fmt: skip
