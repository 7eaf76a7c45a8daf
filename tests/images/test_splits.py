from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ldm_vae.images.collection import open_collection
from ldm_vae.images.splits import choose_split, split_range
from ldm_vae.images.streaming import open_stream
from tests.images.test_collection import greys, names
from tests.pictures import encoded, write_grey


def save(path: Path, **splits: list[int]) -> str:
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    found = {}
    for name, values in splits.items():
        rows = {"photo": [Image.new("L", (4, 4), value) for value in values], "kind": [value % 2 for value in values]}
        found[name] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(found).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"])
def test_held_out_splits_by_all_their_names(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "x", train=[1], **{name: [2]})
    capsys.readouterr()
    assert greys(open_collection(source, held_out=True)) == [2]
    assert greys(open_collection(source)) == [1]
    assert capsys.readouterr().err == ""


def test_falling_back_on_training_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert greys(open_collection(save(tmp_path / "x", train=[1]), held_out=True)) == [1]
    assert "has no split for validation; its split 'train' is used" in capsys.readouterr().err
    assert greys(open_collection(save(tmp_path / "y", test=[3]))) == [3]
    assert "has no split to train on; its only split 'test' is used" in capsys.readouterr().err
    write_grey(tmp_path / "folder" / "a.png", 4)  # knows no splits
    assert greys(open_collection(str(tmp_path / "folder"), held_out=True)) == [4]
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="has the splits a, b; choose one"):
        choose_split(["a", "b"], split=None, held_out=False, source="x")


def test_slices_of_saved_splits_and_of_folders(tmp_path: Path) -> None:
    source = save(tmp_path / "x", train=[1, 2, 3, 4], test=[5])
    assert greys(open_collection(source, split="train[1:3]")) == [2, 3]
    assert greys(open_collection(source, split="train[50%:]")) == [3, 4]
    for number in range(4):
        write_grey(tmp_path / "folder" / f"{number}.png", number)
    assert names(open_collection(str(tmp_path / "folder"), split="train[-1:]")) == ["3.png"]
    assert names(open_collection(str(tmp_path / "folder"), split="train[:2]")) == ["0.png", "1.png"]
    for wrong in ("train[", "train[a:b]", "train[1:2:3]", "train[::]"):
        with pytest.raises(ValueError, match="is no slice of a split, such as train") as caught:
            open_collection(source, split=wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="has no split 'nope"):
        open_collection(source, split="nope[:1]")
    assert split_range("train[:9]", {"train": 4}) == range(4)
    with pytest.raises(ValueError, match=r"the slice 'train\[9:\]' holds no row; train has 4"):
        open_collection(source, split="train[9:]")


def test_streams_know_the_labels_that_collections_know(tmp_path: Path) -> None:
    png = encoded(Image.new("L", (4, 4), 1), "PNG")
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"image": [{"bytes": png, "path": None}] * 2, "kind": [0, 1]}, features=features)
    data.to_parquet(tmp_path / "p" / "x.parquet")
    collection, stream = open_collection(str(tmp_path / "p")), open_stream(str(tmp_path / "p"))
    assert (collection.label_column, collection.label_names) == ("kind", ["a", "b"])
    assert (stream.label_column, stream.label_names) == ("kind", ["a", "b"])
    for folder in ("cat", "dog"):
        write_grey(tmp_path / "f" / folder / "a.png", 1)
    assert open_stream(str(tmp_path / "f")).label_names == ["cat", "dog"]


def test_an_image_column_asked_of_files_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grey(tmp_path / "a.png", 1)
    assert greys(open_collection(str(tmp_path), image_column="photo")) == [1]
    assert "files of images have no column 'photo'; the files are the images" in capsys.readouterr().err
    pq.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    with pytest.raises(ValueError, match="has no column 'photo'; it has n"):
        open_collection(str(tmp_path / "n.parquet"), image_column="photo")
