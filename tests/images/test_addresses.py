"""Data at addresses: the pictures, names and labels of the same data here, and what fails."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import shutil
import tarfile
import uuid
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm_vae.images import addresses
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.streaming import open_stream
from ldm_vae.system.remote_store import RemoteStore, Retries
from tests.pictures import picture
from tests.stores import FaultyStore


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in two classes, the same in two archives and two parquet files."""
    folder = tmp_path_factory.mktemp("here")
    contents = []
    for i in range(6):
        path = folder / "photos" / ("cat" if i < 3 else "dog") / f"{i} é.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, size=(24, 20)).save(path)
        contents.append(path.read_bytes())
    write_tars(folder / "tars", contents)
    write_tables(folder / "tables", contents)
    return folder


def write_tars(folder: Path, contents: list[bytes]) -> None:
    """Write pictures into two archives."""
    folder.mkdir()
    for part, some in enumerate(halves(contents)):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for i in some:
                member = tarfile.TarInfo(f"{i}.png")
                member.size = len(contents[i])
                tar.addfile(member, io.BytesIO(contents[i]))


def write_tables(folder: Path, contents: list[bytes]) -> None:
    """Write pictures into two parquet files."""
    folder.mkdir()
    for part, some in enumerate(halves(contents)):
        rows = {"image": [{"bytes": contents[i], "path": f"{i}.png"} for i in some], "caption": [f"{i}" for i in some]}
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{part}.parquet")


def halves(contents: list[bytes]) -> list[range]:
    middle = (len(contents) + 1) // 2
    return [range(middle), range(middle, len(contents))]


def upload(folder: Path) -> str:
    address = f"memory://{uuid.uuid4().hex}/data"
    fsspec.filesystem("memory").put(f"{folder}/", address.removeprefix("memory:/"), recursive=True)
    return address


@pytest.fixture
def there(here: Path) -> str:
    return upload(here)


def pixels(collection: ImageCollection) -> list[bytes]:
    return [collection.read(i, channels=3).tobytes() for i in range(len(collection))]


def test_a_folder_of_pictures(here: Path, there: str) -> None:
    local, remote = open_collection(f"{here}/photos"), open_collection(f"{there}/photos")
    assert [remote.name(i) for i in range(6)] == [local.name(i) for i in range(6)]
    assert [remote.label(i) for i in range(6)] == [local.label(i) for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert pixels(remote) == pixels(local)
    assert len(open_collection(f"{there}/photos/**/4*.png")) == 1


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_metadata_files(here: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each picture has the columns that it has where the folder is here, and the same notes are told."""
    shutil.copytree(here / "photos", tmp_path / "photos")
    rows = [{"file_name": f"{i} é.png", "caption": f"nº {i}", "label": i} for i in (2, 0, 1)]
    rows.append({"file_name": "gone.png", "caption": "", "label": 0})
    path = tmp_path / "photos" / "cat" / f"metadata.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        separator = "," if ending == "csv" else "\t"
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        path.write_text("\n".join(map(separator.join, lines)))
    told = []
    columns = []
    for source in (f"{tmp_path}/photos", upload(tmp_path / "photos")):
        collection = open_collection(source)
        columns.append([(collection.row(i), collection.label(i)) for i in range(len(collection))])
        told.append([line.replace(source, "SOURCE") for line in capsys.readouterr().err.splitlines()])
    assert columns[1] == columns[0]
    assert [row["caption"] for row, _ in columns[1]] == ["nº 0", "nº 1", "nº 2", None, None, None]
    assert told[1] == told[0]
    assert any("rows that name no picture here: 1 of 4" in line for line in told[1])


def test_metadata_that_names_addresses_or_is_broken(here: Path, there: str) -> None:
    store = RemoteStore(f"{there}/photos")
    lines = [json.dumps({"file_name": f"{store.place()}/dog/{i} é.png", "caption": str(i)}) for i in (4, 3)]
    store.write_whole("metadata.jsonl", "\n".join(lines).encode())
    collection = open_collection(store.place())
    assert [collection.row(i)["caption"] for i in range(6)] == [None, None, None, "3", "4", None]
    store.write_whole("metadata.jsonl", b'{"file_name": "a"}\nno json')
    with pytest.raises(ValueError, match=r"the metadata in memory://.*: metadata\.jsonl can't be read: line 2"):
        open_collection(store.place())


def test_captions_beside_pictures(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(here / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "cat" / "0 é.txt").write_text("nº 0\n")
    (tmp_path / "photos" / "cat" / "1 é.caption").write_bytes("nº 1".encode("cp1252"))
    (tmp_path / "photos" / "dog" / "5 é.txt").write_text("five")
    (tmp_path / "photos" / "dog" / "stray.txt").write_text("of no picture")
    local, address = open_collection(f"{tmp_path}/photos"), upload(tmp_path / "photos")
    remote = open_collection(address)
    texts = [remote.row(i)["text"] for i in range(6)]
    assert texts == [local.row(i)["text"] for i in range(6)] == ["nº 0", "nº 1", None, None, None, "five"]
    assert all("label" in remote.row(i) and set(remote.row(i)) == {"label", "text"} for i in range(6))
    fsspec.filesystem("memory").rm(f"{address}/dog/5 é.txt".removeprefix("memory:/"))
    assert remote.row(5)["text"] is None
    assert "the caption dog/5 é.txt can't be read" in capsys.readouterr().err
    assert [each["text"] for each in map(pickle.loads(pickle.dumps(remote)).row, range(2))] == texts[:2]


@pytest.mark.parametrize("kind", ["tars", "tables"])
def test_files_of_many_pictures(
    here: Path, there: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    local, remote = open_stream(f"{here}/{kind}"), open_stream(f"{there}/{kind}")
    assert remote.dataset.num_shards == local.dataset.num_shards == 2
    for one, other in itertools.zip_longest(local.dataset, remote.dataset):
        assert remote.cells.content(other[remote.image_column], row=0) == local.cells.content(
            one[local.image_column], row=0
        )
    assert len(list(open_stream(f"{there}/{kind}/1.*").dataset)) == 3


def test_archives_are_read_where_calls_fail(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a source that is dead is named, after the attempts."""
    stores: list[FaultyStore] = []

    def faulty(address: str) -> FaultyStore:
        stores.append(FaultyStore(address, rate=0.4, seed=len(stores)))
        return stores[-1]

    monkeypatch.setattr(addresses, "RemoteStore", faulty)
    assert len(list(open_stream(f"{there}/tars").dataset)) == 6
    assert sum(store.faults for store in stores) >= 2


def test_what_can_not_be_fetched_is_named(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = open_collection(f"{there}/photos")
    fsspec.filesystem("memory").rm(f"{there}/photos/cat/1 é.png".removeprefix("memory:/"))
    with pytest.raises(UnreadableImage, match=r"cat/1 é\.png.*doesn't exist"):
        collection.read(1, channels=3)
    monkeypatch.setattr(RemoteStore, "retries", Retries(attempts=1))
    with pytest.raises(ValueError, match=rf"data: {there}/nothing holds no image; give a folder"):
        open_collection(f"{there}/nothing")
    several = rf"data: {there} holds several kinds of data \(pictures, \.parquet, \.tar\); name one"
    with pytest.raises(ValueError, match=several):
        open_collection(there)
