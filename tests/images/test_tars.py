from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ldm_vae.images.collection import open_collection
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.streaming import open_stream
from tests.images.test_collection import greys, names
from tests.pictures import encoded


def write_tar(path: Path, members: list[tuple[str, bytes]], *, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def picture(value: int, fmt: str) -> bytes:
    return encoded(Image.new("L", (4, 4), value), fmt)


def test_pictures_of_several_endings_are_one_column(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", [("0001.jpg", picture(10, "JPEG")), ("0001.txt", b"one"), ("0001.json", b'{"a": 1}')]
    )
    write_tar(
        tmp_path / "b.tar",
        [("x/2.PNG", picture(20, "PNG")), ("x/2.cls", b"3"), ("x/3.jpeg", picture(30, "JPEG")),
         ("x/3.json", b'{"a": null, "b": [1]}'), ("./4.webp", picture(40, "WEBP")), ("5.1.avif", b""[:0]),
         ("6.tiff", picture(60, "TIFF"))],
    )  # fmt: skip
    collection = open_collection(str(tmp_path))
    assert names(collection) == ["0001.jpg", "x/2.png", "x/3.jpeg", "./4.webp", "5.1.avif", "6.tiff"]
    assert [collection.label(i) for i in range(3)] == [None, 3, None]
    assert collection.row(0)["txt"] == "one"
    assert [collection.row(i)["json"] for i in (0, 2)] == [{"a": 1}, {"a": None, "b": [1]}]
    assert [collection.read(i, channels=1).getpixel((0, 0)) for i in (0, 1, 2, 3, 5)] == [10, 20, 30, 40, 60]
    stream = open_stream(str(tmp_path))
    assert stream.dataset.num_shards == 2
    cells = [example["image"] for example in stream.dataset]
    assert [stream.cells.name(cell, row=0) for cell in cells] == names(collection)


def test_duplicate_members_and_samples_without_picture_are_skipped(tmp_path: Path) -> None:
    good = [("1.png", picture(10, "PNG"))]
    twice = [("2.png", picture(20, "PNG")), ("2.txt", b"a"), ("2.txt", b"b")]
    without = [("3.txt", b"no picture")]
    hidden = [("._4.png", b"junk"), ("__MACOSX/4.png", b"junk"), (".DS_Store", b"junk")]
    write_tar(tmp_path / "a.tar", [*good, *twice, *without, *hidden, ("5.png", picture(50, "PNG"))])
    collection = open_collection(str(tmp_path))
    assert len(collection) == 4
    assert [collection.read(i, channels=1).getpixel((0, 0)) for i in (0, 3)] == [10, 50]
    for row, reason in ((1, r"several members \.txt"), (2, r"no picture, only \.txt")):
        with pytest.raises(UnreadableImage, match=reason):
            collection.read(row, channels=1)


def test_samples_with_several_pictures_need_a_name(tmp_path: Path) -> None:
    members = [("1.jpg", picture(10, "JPEG")), ("1.mask.png", picture(20, "PNG"))]
    write_tar(tmp_path / "a.tar", members)
    assert greys(open_collection(str(tmp_path))) == [10]  # the one with nothing but its ending
    assert greys(open_collection(str(tmp_path), image_column="mask.png")) == [20]
    write_tar(tmp_path / "a.tar", [*members, ("1.png", picture(30, "PNG"))])
    with pytest.raises(ValueError, match=r"the sample 1 of .*a\.tar holds several pictures \(jpg, png\); name one"):
        open_collection(str(tmp_path))
    assert greys(open_collection(str(tmp_path), image_column="png")) == [30]


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", [("1.png", picture(10, "PNG"))])
    write_tar(tmp_path / "short.tar", [(f"{number}.png", picture(number, "PNG") + bytes(2000)) for number in range(9)])
    content = (tmp_path / "short.tar").read_bytes()
    for bad in (content[:15_000], b"", b"this is no archive"):
        (tmp_path / "short.tar").write_bytes(bad)
        with pytest.raises(ValueError, match=r"^data: .*short\.tar can't be read to its end: .*leave it out$"):
            open_collection(str(tmp_path))


def test_changed_archives_are_read_again_and_sliced(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.png", picture(10, "PNG"))])
    assert greys(open_collection(str(tmp_path))) == [10]
    write_tar(tmp_path / "a.tar", [("1.png", picture(11, "PNG")), ("2.png", picture(12, "PNG"))])
    assert greys(open_collection(str(tmp_path))) == [11, 12]
    assert greys(open_collection(str(tmp_path), split="train[1:]")) == [12]


def test_an_archive_that_ends_between_two_members_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "a.tar", [(f"{number}.png", picture(number, "PNG")) for number in range(9)])
    whole = (tmp_path / "a.tar").read_bytes()
    assert len(open_collection(str(tmp_path))) == 9
    assert "a.tar" not in capsys.readouterr().err
    (tmp_path / "a.tar").write_bytes(whole[: 4 * 1024])
    assert len(open_collection(str(tmp_path))) == 4
    assert "a.tar lacks the mark at its end; it may have been cut short, behind 4 samples" in capsys.readouterr().err
