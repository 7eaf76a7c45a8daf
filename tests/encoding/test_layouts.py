"""`encode --layout`: the files of another trainer, as `latents export` writes them, whole or absent as shards are."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ldm_vae.config.commands.latents import LatentsExportOptions, LatentsVerifyOptions
from ldm_vae.encoding import encode as encode_module
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.verify import LatentsDamaged, verify
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.columns import OTHERS, Columns, common_kind
from ldm_vae.latents.layouts.export import export_latents
from ldm_vae.system import leases as leases_module
from tests.encodings import contents, options, save_captioned
from tests.latents.test_layouts import check_rows, read_mds
from tests.pictures import encoded, picture, save_pictures
from tests.stores import StoppingStore, fresh_places, memory_contents, of_an_ended_process, stopped_at_each_call
from tests.test_every_family import MODELS
from tests.tiny import tiny_family

LAYOUTS = ["lightningdit", "mds", "parquet", "webdataset"]
ENDINGS = {"lightningdit": ".safetensors", "mds": ".mds", "parquet": ".parquet", "webdataset": ".tar"}
HIDDEN = ".ldm-vae-encode-"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six of them, of two shapes, with a number and a `source` of their own."""
    return save_captioned(
        tmp_path_factory.mktemp("data"),
        sizes=[(24, 20)] * 3 + [(20, 30)] * 3,
        others=lambda i: {"likes": i, "source": f"web {i}"},
    )


@pytest.fixture(scope="module")
def latents(vae: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("latents")
    encode(options(vae, data, folder, flip=True, dtype="float16"))
    return str(folder)


def files(folder: Path) -> dict[str, bytes]:
    """Return the files that a layout's reader sees."""
    return {name: content for name, content in contents(folder).items() if not name.startswith(".")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_those_of_an_export(vae: str, data: str, latents: str, tmp_path: Path, layout: str) -> None:
    """The same bytes, found whole; and what is damaged is named as it is called, and mended."""
    direct, exported = tmp_path / "direct", tmp_path / "exported"
    summary = encode(options(vae, data, direct, flip=True, dtype="float16", layout=layout))
    assert f"1 skipped, listed in {HIDDEN}skipped.jsonl" in str(summary)
    export_latents(LatentsExportOptions(latents=latents, output=str(exported), layout=layout))  # type: ignore
    theirs = {name.replace("-of-00002", ""): content for name, content in files(exported).items()}
    theirs = {name.replace("shard000", "shard00000").replace("shard001", "shard00001"): content
              for name, content in theirs.items()}  # fmt: skip
    assert files(direct) == theirs
    assert json.loads((direct / f"{HIDDEN}skipped.jsonl").read_text())["source"] == "cat/broken.png"
    check = LatentsVerifyOptions(latents=str(direct))
    assert str(verify(check)) == f"{direct}: 6 latents in 2 shards, all whole"
    assert encode(options(vae, data, direct, flip=True, dtype="float16", layout=layout)).encoded_images == 0
    shard = next(name for name in sorted(theirs) if name.endswith(ENDINGS[layout]) and "00001" in name)
    content = bytearray(theirs[shard])
    content[-5] ^= 1
    (direct / shard).write_bytes(content)
    shutil.copy(direct / shard, direct / f"a{ENDINGS[layout]}")
    with pytest.raises(LatentsDamaged, match=rf"damaged: {shard}: its digest.*foreign: a{ENDINGS[layout]}: it is no"):
        verify(check)
    (direct / f"a{ENDINGS[layout]}").unlink()
    again = encode(options(vae, data, direct, flip=True, dtype="float16", layout=layout))
    assert (again.damaged_shards, again.encoded_images) == (1, 3)
    assert files(direct) == theirs


def test_what_is_found_damaged_is_in_no_list(vae: str, data: str, tmp_path: Path) -> None:
    """MDS has an index of its own: verified, withdrawn while a shard isn't whole, and written again."""
    arguments: dict[str, Any] = {"layout": "mds", "flip": True}
    encode(options(vae, data, tmp_path, **arguments))
    index, check = (tmp_path / "index.json").read_bytes(), LatentsVerifyOptions(latents=str(tmp_path))
    (tmp_path / "index.json").write_bytes(index[:-1])
    with pytest.raises(LatentsDamaged, match=r"damaged: index\.json: its digest isn't the one in the index"):
        verify(check)
    encode(options(vae, data, tmp_path, **arguments))
    assert (tmp_path / "index.json").read_bytes() == index
    (tmp_path / "shard.00001.mds").write_bytes(b"cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module._Encode, "_finish_shards", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encode(options(vae, data, tmp_path, **arguments))
    assert not (tmp_path / "index.json").exists()
    with pytest.raises(LatentsDamaged, match=r"unfinished: \.ldm-vae-encode-index\.json: not written yet"):
        verify(check)
    encode(options(vae, data, tmp_path, **arguments))
    assert (tmp_path / "index.json").read_bytes() == index


@pytest.mark.parametrize(("layout", "place"), [("mds", "here"), ("lightningdit", "memory")])
def test_a_process_may_end_at_any_call_of_the_store(
    vae: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, place: str
) -> None:
    """The next one finishes; and while a shard isn't whole, there is no list that names it."""
    loaded = encode_module.load_vae(vae)
    monkeypatch.setattr(encode_module, "load_vae", lambda *_, **__: loaded)
    ended, number = of_an_ended_process(), 0
    listed = {"mds": "index.json", "lightningdit": "latents_stats.pt"}[layout]
    changes: dict[str, Any] = {"flip": True, "layout": layout, "shard_size": 7, "batch_size": 7}
    encode(options(vae, data, tmp_path / "whole", **changes))

    def run(store: StoppingStore) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(leases_module, "os", ended)
            patch.setattr(encode_module, "open_store", lambda place: store)
            encode(options(vae, data, store.place(), **changes))

    places = fresh_places(tmp_path, place=place)
    for stopped in stopped_at_each_call(run, fresh=places, after=None, every=3):
        number += 1
        output, there = stopped.place(), set(stopped.store.names())
        assert listed not in there or f"{HIDDEN}latents-00000.json" in there
        encode(options(vae, data, output, **changes))
        found = contents(Path(output)) if place == "here" else memory_contents(output)
        assert found == contents(tmp_path / "whole"), stopped.calls[stopped.stop]
    assert number > 10


@pytest.mark.parametrize("layout", ["mds", "parquet"])
def test_columns_of_tar_files(vae: str, tmp_path: Path, layout: str) -> None:
    """Their first samples say what columns there are; what comes later is kept in a column of its own."""
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for i in range(7):
            members = {"png": encoded(picture(i), "PNG"), "json": json.dumps({"n": i if i != 6 else "six"}).encode()}
            members |= {"txt": f"nº {i}".encode()} if i != 3 else {}
            members |= {"url": b"late"} if i == 5 else {}
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{i:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    data, out = str(tmp_path / "data.tar"), tmp_path / "out"
    for name, streaming in (("out", False), ("stream", True)):
        encode(options(vae, data, tmp_path / name, layout=layout, streaming=streaming))
    if layout == "mds":
        rows, streamed = read_mds(out), read_mds(tmp_path / "stream")
    else:
        loads = {"split": "train", "cache_dir": str(tmp_path / "cache")}
        rows, streamed = (list(datasets.load_dataset(str(tmp_path / name), **loads)) for name in ("out", "stream"))
        for row in (*rows, *streamed):
            for name in ("json", OTHERS):
                row[name] = json.loads(row[name]) if row[name] else None
    assert [row["txt"] for row in rows] == [None if i == 3 else f"nº {i}" for i in range(7)]
    assert [row["json"] for row in rows] == [{"n": i} for i in range(6)] + [{"n": "six"}]
    assert [row[OTHERS] for row in rows] == [{"url": "late"} if i == 5 else None for i in range(7)]
    assert [row["__key__"] for row in rows] == [f"{i:03d}" for i in range(7)]
    assert [row["txt"] for row in streamed] == [row["txt"] for row in rows]
    check_rows(streamed, _Moments(rows), suffix="")


def test_a_value_that_its_column_cannot_hold_is_kept_beside() -> None:
    columns = Columns(kinds={"n": "int", "x": "float"}, has_others=True)
    values = columns.values({"columns": {"n": "six", "x": 2, "t": 1}})
    assert values == {"n": None, "x": 2, OTHERS: {"n": "six", "t": 1}}
    assert columns.values({"columns": {"n": 6}}) == {"n": 6, "x": None, OTHERS: None}


class _Moments(list):
    """Rows as `check_rows` asks a `LatentDataset` for them."""

    def moments(self, row: int) -> dict[str, Any]:
        return {name: torch.tensor(self[row][name]) for name in ("mean", "std")}


def test_streamed_parquet_buckets_and_a_shard_without_rows(vae: str, data: str, tmp_path: Path) -> None:
    rows = [{"image": {"bytes": encoded(picture(i), "PNG") if i > 3 else b"broken", "path": None},
             "caption": f"nº {i}", "tags": ["a", str(i)], "mean": i} for i in range(7)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    cache = str(tmp_path / "cache")
    for streaming in (False, True):
        out = tmp_path / f"out-{streaming}"
        encode(options(vae, str(tmp_path / "data.parquet"), out, layout="parquet", streaming=streaming))
        loaded = datasets.load_dataset(str(out), split="train", cache_dir=cache)
        assert loaded["caption"][:] == ["nº 4", "nº 5", "nº 6"]
        assert [json.loads(tags) for tags in loaded["tags"]] == [["a", "4"], ["a", "5"], ["a", "6"]]
        assert (loaded["mean_"][:], loaded["label"][:]) == ([4, 5, 6], [-1, -1, -1])
        assert loaded.features["mean"] == datasets.Array3D(shape=(4, 8, 8), dtype="float32")
        encode(options(vae, str(tmp_path / "data.parquet"), tmp_path / f"mds-{streaming}", layout="mds",
                       streaming=streaming))  # fmt: skip
        assert [sample["tags"] for sample in read_mds(tmp_path / f"mds-{streaming}")] == [
            ["a", str(i)] for i in (4, 5, 6)
        ]
    for layout in ("mds", "parquet"):
        encode(options(vae, data, tmp_path / layout, layout=layout, buckets=True, bucket_step=4, dtype="bfloat16"))
    encode(options(vae, data, tmp_path / "buckets", buckets=True, bucket_step=4, dtype="bfloat16"))
    dataset = LatentDataset(tmp_path / "buckets", normalize="none")
    check_rows(read_mds(tmp_path / "mds"), dataset, suffix="")
    check_rows(datasets.load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=cache), dataset, suffix="")


@pytest.mark.parametrize("name", ["flux2", "tiny", "vq"])
def test_other_families(tmp_path: Path, name: str) -> None:
    """Latents without moments; and numbers of codes, with the codes beside them or as the latents that they mean."""
    tiny_family(family=name, **MODELS[name]).model.save_pretrained(tmp_path / "vae")
    vae, data = str(tmp_path / "vae"), save_pictures(tmp_path / "data", count=5)
    encode(options(vae, data, tmp_path / "latents", flip=True))
    dataset = LatentDataset(tmp_path / "latents", normalize="none")
    encode(options(vae, data, tmp_path / "mds", flip=True, layout="mds"))
    check_rows(read_mds(tmp_path / "mds"), dataset, suffix="")
    codebooks = [tmp_path / folder / "codebook.npy" for folder in ("mds", "latents")]
    assert [path.exists() for path in codebooks] == [name == "vq"] * 2
    assert name != "vq" or codebooks[0].read_bytes() == codebooks[1].read_bytes()
    encode(options(vae, data, tmp_path / "dit", flip=True, layout="lightningdit"))
    stored = load_file(tmp_path / "dit" / "latents_rank00_shard00001.safetensors")
    assert torch.equal(stored["latents"][0], dataset.latents(4))
    assert torch.equal(stored["latents_flip"][0], dataset.latents(4, flipped=True))


def test_what_is_refused(vae: str, data: str, latents: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(options(vae, data, out, layout="mds"))
    with pytest.raises(ValueError, match="out holds latents in another trainer's layout, which aren't read here; enc"):
        LatentDataset(out)
    with pytest.raises(ValueError, match=r"deep compares rows, which aren't read of latents .*out, in another"):
        verify(LatentsVerifyOptions(latents=str(out), deep=True, vae=vae, data=data))
    with pytest.raises(ValueError, match=r'layout\.name: "mds" there, "webdataset" here'):
        encode(options(vae, data, out, layout="webdataset"))
    for overwrite in (False, True):
        with pytest.raises(
            ValueError, match="out holds an encode in another layout; take another folder, or give its"
        ):
            encode(options(vae, data, out, overwrite=overwrite))
        with pytest.raises(ValueError, match="holds an encode in another layout"):
            encode(options(vae, data, latents, overwrite=overwrite, layout="mds"))
    (out / "mine.txt").write_text("kept")
    encode(options(vae, data, out, layout="webdataset", overwrite=True))
    names = {name for name in contents(out) if not name.startswith(HIDDEN)}
    assert names == {"mine.txt", "latents-00000.tar", "latents-00001.tar"}
    with pytest.raises(ValueError, match="layout is lightningdit, whose reader asks for mirrored latents; give flip"):
        options(vae, data, out, layout="lightningdit")
    with pytest.raises(ValueError, match="layout is lightningdit, which has no place for buckets of several shapes"):
        options(vae, data, out, layout="lightningdit", flip=True, buckets=True, bucket_step=4)
    plan = json.loads((out / f"{HIDDEN}plan.json").read_text())
    (out / f"{HIDDEN}plan.json").write_text(json.dumps(plan | {"seed": 3}))
    with pytest.raises(ValueError, match=r"plan\.json is damaged: start the same encode again"):
        verify(LatentsVerifyOptions(latents=str(out)))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None], "text"), ([1, None], "int"), ([1, 2.0], "float"), ([True], "bool"), ([1, "a"], "json"),
        ([2**63], "json"), ([None], "json"), ([[1]], "json"), ([1, True], "json"),
    ],
)  # fmt: skip
def test_kinds_of_columns(values: list[Any], kind: str) -> None:
    assert common_kind(values) == kind
