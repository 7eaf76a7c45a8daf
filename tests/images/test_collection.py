from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.guard import UnreadableImage
from tests.pictures import encoded, write_grey


def names(collection: ImageCollection) -> list[str]:
    return [collection.name(i) for i in range(len(collection))]


def greys(collection: ImageCollection) -> list[int]:
    return [collection.read(i, channels=1).getpixel((0, 0)) for i in range(len(collection))]


def write_parquet(path: Path, values: list[int], **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = [encoded(Image.new("L", (4, 4), value), "PNG") for value in values]
    cells = [{"bytes": content, "path": f"{value}.png"} for content, value in zip(contents, values, strict=True)]
    image = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"picture": image, **columns}), path)


def test_a_folder_gives_all_its_images_sorted_by_path(tmp_path: Path) -> None:
    root = tmp_path / "with [brackets] and * é"
    for value, name in enumerate(["b.png", "a.PNG", "a.bmp", "test_1.png", "deep/er/c d [1].png", "ü.tiff"]):
        write_grey(root / name, value)
    write_grey(root / ".hidden.png", 0)
    write_grey(root / ".thumbnails" / "x.png", 0)
    (root / "notes.txt").write_text("no image")
    (root / "empty.jpg").touch()
    (root / "deep" / "loop").symlink_to(root)
    collection = open_collection(str(root))
    assert names(collection) == [
        "a.PNG", "a.bmp", "b.png", "deep/er/c d [1].png", "empty.jpg", "test_1.png", "ü.tiff",
    ]  # fmt: skip
    with pytest.raises(UnreadableImage, match=r"empty\.jpg .*empty"):
        collection.read(4, channels=3)
    assert [collection.read(i, channels=1).getpixel((0, 0)) for i in (0, 1, 2, 3, 5, 6)] == [1, 2, 0, 4, 3, 5]
    assert collection.columns == []
    assert (collection.row(0), collection.label(0), collection.label_names) == ({}, None, None)
    status = os.stat(root / "a.PNG")
    assert collection.source_stat(0) == (status.st_size, status.st_mtime_ns)
    assert greys(open_collection(str(tmp_path / "with*" / "?.png"))) == [0]


def test_names_in_other_encodings(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 77).save(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    collection = open_collection(str(tmp_path))
    assert names(collection) == ["caf\\xe9.png"]
    assert greys(collection) == [77]


def test_subfolders_are_labels(tmp_path: Path) -> None:
    for value, name in enumerate(["dog/1.png", "cat/1.png", "cat/2.png", "a b/1.png"]):
        write_grey(tmp_path / name, value)
    collection = open_collection(str(tmp_path))
    assert [(collection.name(i), collection.label(i)) for i in range(4)] == [
        ("a b/1.png", 0), ("cat/1.png", 1), ("cat/2.png", 1), ("dog/1.png", 2),
    ]  # fmt: skip
    assert collection.label_names == ["a b", "cat", "dog"]
    assert collection.row(3) == {"label": 2}
    write_grey(tmp_path / "stray.png", 9)
    assert open_collection(str(tmp_path)).label(0) is None


def test_folders_that_are_splits_stay_apart_and_share_their_labels(tmp_path: Path) -> None:
    for value, name in enumerate(["train/cat/1.png", "train/dog/1.png", "val/dog/2.png"]):
        write_grey(tmp_path / name, value)
    train = open_collection(str(tmp_path))
    validation = open_collection(str(tmp_path), held_out=True)
    assert (names(train), [train.label(i) for i in range(2)]) == (["train/cat/1.png", "train/dog/1.png"], [0, 1])
    assert (names(validation), validation.label(0)) == (["val/dog/2.png"], 1)
    assert names(open_collection(str(tmp_path), split="validation")) == ["val/dog/2.png"]
    with pytest.raises(ValueError, match=r"^data: .* has no split 'test'; it has train, validation$"):
        open_collection(str(tmp_path), split="test")
    (tmp_path / "train").rename(tmp_path / "test")
    with pytest.raises(ValueError, match="has the splits test, validation; choose one"):
        open_collection(str(tmp_path))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_metadata_of_a_folder(tmp_path: Path, ending: str) -> None:
    for value, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        write_grey(tmp_path / name, value)
    table = {"file_name": ["sub/c.png", "gone.png", "a.png"], "text": ["see", "gone", "ah"], "label": [5, 6, 7]}
    path = tmp_path / f"metadata.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table(table), path)
    else:
        write = datasets.Dataset.from_dict(table)
        write.to_csv(path, index=False) if ending == "csv" else write.to_json(path)
    collection = open_collection(str(tmp_path))
    assert names(collection) == ["a.png", "b.png", "sub/c.png"]
    assert [collection.row(i)["text"] for i in range(3)] == ["ah", None, "see"]
    assert [collection.label(i) for i in range(3)] == [7, None, 5]


def test_parquet_files_of_unequal_size(tmp_path: Path) -> None:
    folder = tmp_path / "[data]"
    write_parquet(folder / "train-00000-of-00003.parquet", [10, 20, 30], label=[3, 4, 5], text=["x", "y", None])
    write_parquet(
        folder / "train-00001-of-00003.parquet", [], label=pa.array([], pa.int64()), text=pa.array([], "string")
    )
    write_parquet(folder / "train-00002-of-00003.parquet", [40], label=[6], text=["z"])
    write_parquet(folder / "validation-00000-of-00001.parquet", [50], label=[7], text=["v"])
    for source in (str(folder), str(tmp_path / "[[]data]" / "train*.parquet")):
        collection = open_collection(source)
        assert (names(collection), greys(collection)) == (["10.png", "20.png", "30.png", "40.png"], [10, 20, 30, 40])
        assert (collection.row(2), collection.label(3)) == ({"label": 5, "text": None}, 6)
        assert collection.source_stat(0) is None
    assert greys(open_collection(str(folder), held_out=True)) == [50]
    assert greys(open_collection(str(folder / "train-00002-of-00003.parquet"))) == [40]


def test_webdataset_tars(tmp_path: Path) -> None:
    for number, values in enumerate([[10, 20], [30]]):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for value in values:
                png = encoded(Image.new("L", (4, 4), value), "PNG")
                for ending, content in (("png", png), ("cls", str(value // 10).encode())):
                    member = tarfile.TarInfo(f"{value}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    for source in (str(tmp_path), str(tmp_path / "*.tar")):
        collection = open_collection(source)
        assert (greys(collection), [collection.label(i) for i in range(3)]) == ([10, 20, 30], [1, 2, 3])


def test_saved_datasets_and_their_splits(tmp_path: Path) -> None:
    pictures = [Image.new("L", (4, 4), value) for value in (1, 2, 3)]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"photo": pictures, "kind": [0, 1, 1]}, features=features)
    data.save_to_disk(tmp_path / "one")
    collection = open_collection(str(tmp_path / "one"))
    assert (greys(collection), collection.label(2), collection.label_names) == ([1, 2, 3], 1, ["a", "b"])
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    assert greys(open_collection(str(tmp_path / "two"), held_out=True)) == [2]


def test_image_columns_are_found_or_named(tmp_path: Path) -> None:
    left, right = ([Image.new("L", (4, 4), value)] for value in (1, 2))
    features = datasets.Features({"left": datasets.Image(), "right": datasets.Image(), "n": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"left": left, "right": right, "n": [0]}, features=features)
    data.save_to_disk(tmp_path / "two")
    data.remove_columns(["left", "right"]).save_to_disk(tmp_path / "none")
    assert greys(open_collection(str(tmp_path / "two"), image_column="right")) == [2]
    for folder, column, message in (
        ("two", None, r"has the image columns left, right .*name one by image_column"),
        ("two", "middle", r"has no column 'middle'; it has left, right, n$"),
        ("none", None, r"has no image column \(its columns: n\)"),
    ):
        with pytest.raises(ValueError, match=message):
            open_collection(str(tmp_path / folder), image_column=column)


def test_what_a_user_gets_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.parquet").write_text("this is no parquet")
    (tmp_path / "notes.txt").write_text("text")
    write_grey(tmp_path / "broken metadata" / "x.png", 1)
    (tmp_path / "broken metadata" / "metadata.jsonl").write_text("{")
    for source, message in (
        (tmp_path / "missing", "is neither a folder nor a file here; give a folder of images"),
        (tmp_path / "empty", "holds no image; give a folder of images"),
        (tmp_path / "broken", "can't be loaded: "),
        (tmp_path / "broken metadata", "the metadata in .* can't be read: "),
        (tmp_path / "notes.txt", r"names files with the endings \.txt; give a folder of images"),
        ("nobody/nothing", "is neither a folder or file here nor a data set that the hub could give: "),
    ):
        with pytest.raises(ValueError, match=f"^data.train: .*{message}") as caught:
            open_collection(str(source), field="data.train")
        assert "\n" not in str(caught.value)


def test_collections_travel_to_workers(tmp_path: Path) -> None:
    write_grey(tmp_path / "files" / "a.png", 5)
    write_parquet(tmp_path / "table" / "a.parquet", [6])
    for source, value in (("files", 5), ("table", 6)):
        collection = pickle.loads(pickle.dumps(open_collection(str(tmp_path / source))))
        assert greys(collection) == [value]


def test_cropping_reads_what_reading_reads(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    collection = open_collection(str(tmp_path))
    crop = collection.read_crop(0, channels=1, resolution=4, box_of=lambda size: (4, 0, 8, 4))
    assert crop.tobytes() == collection.read(0, channels=1).crop((4, 0, 8, 4)).tobytes()
