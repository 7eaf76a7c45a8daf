from __future__ import annotations

import csv
import io
import json
import unicodedata
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm_vae.images.collection import open_collection
from tests.pictures import write_grey


def texts(root: Path, column: str = "text") -> dict[str, object]:
    collection = open_collection(str(root))
    return {collection.name(i): collection.row(i).get(column) for i in range(len(collection))}


def write_pictures(root: Path, *names: str) -> None:
    for name in names:
        write_grey(root / name, 1, size=(2, 2))


ODD = ["007", "1e5", "2020-01-01", "NA", "null", "True", "", "nan", " x ", 'a "b", c', "two\nlines", "0x1F", "1.0"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_captions_are_text_whatever_they_look_like(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path, *(f"{number:02}.png" for number in range(len(ODD))))
    rows = [(f"{number:02}.png", text) for number, text in enumerate(ODD)]
    path = tmp_path / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows))
    elif kind == "parquet":
        pq.write_table(pa.table({"file_name": [name for name, _ in rows], "text": ODD}), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            writer.writerows([("file_name", "text"), *rows])
    assert list(texts(tmp_path).values()) == ODD


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
def test_any_text_survives(tmp_path: Path, text: str) -> None:
    write_pictures(tmp_path, "a.png")
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), ("a.png", text)])
    assert texts(tmp_path) == {"a.png": text}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_encodings_and_separators(
    tmp_path: Path, encoding: str, separator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path, "a.png")
    lines = f"file_name{separator}text\r\na.png{separator}café — 10 €\r\n"
    (tmp_path / "metadata.csv").write_bytes(lines.encode(encoding))
    assert texts(tmp_path) == {"a.png": "café — 10 €"}
    assert ("taken for Windows-1252" in capsys.readouterr().err) == (encoding == "cp1252")


def test_captions_of_many_lines_beyond_a_megabyte(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    long = ("many words\n" * 150_000)[:-1]
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), ("a.png", long), ("b.png", "short")])
    assert texts(tmp_path) == {"a.png": long, "b.png": "short"}


def test_names_are_found_in_other_spellings_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nfd = unicodedata.normalize("NFD", "é.png")
    write_pictures(tmp_path, "a.png", "sub/b.png", nfd, "D.PNG", "e.webp", "sub/f.png")
    names = ["./a.png", "sub\\b.png", "é.png", "d.png", "e", str(tmp_path / "sub" / "f.png"), "gone.png", "a.png"]
    rows = [{"file_name": name, "text": str(number)} for number, name in enumerate(names)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert texts(tmp_path) == {"a.png": "0", "sub/b.png": "1", nfd: "2", "D.PNG": "3", "e.webp": "4", "sub/f.png": "5"}
    told = capsys.readouterr().err
    assert "rows that name no picture here: 1 of 8, such as 'gone.png'" in told
    assert "rows that name a picture again, whose first row counts: 1" in told
    assert "names that fit a picture but for case or Unicode normal form: 2" in told
    assert "names that fit a picture but for the ending, which they lack: 1" in told


def test_metadata_in_subfolders_and_pictures_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, "a.png", "one/b.png", "one/deep/c.png", "two/d.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,top\none/b.png,top of b\n")
    (tmp_path / "one" / "metadata.csv").write_text("file_name,text\nb.png,near b\ndeep/c.png,c\n")
    assert texts(tmp_path) == {"a.png": "top", "one/b.png": "near b", "one/deep/c.png": "c", "two/d.png": None}
    assert "pictures without a row: 1 of 4, such as 'two/d.png'" in capsys.readouterr().err


def test_types_are_those_of_the_file_and_labels_are_numbers(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    rows = [{"file_name": "a.png", "n": 1, "mixed": "x", "box": [1, 2]}, {"file_name": "b.png", "n": 2, "mixed": 7}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    collection = open_collection(str(tmp_path))
    assert collection.row(0) == {"n": 1, "mixed": "x", "box": [1, 2]}
    assert collection.row(1) == {"n": 2, "mixed": "7", "box": None}
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,label,n\na.png,3,3\nb.png,,4\n")
    collection = open_collection(str(tmp_path))
    assert [collection.label(i) for i in range(2)] == [3, None]
    assert collection.row(0)["n"] == "3"
    (tmp_path / "metadata.csv").unlink()
    table = {"file_name": ["a.png", "b.png"], "day": [date(2020, 1, 2), None]}
    pq.write_table(pa.table(table), tmp_path / "metadata.parquet")
    assert open_collection(str(tmp_path)).row(0) == {"day": date(2020, 1, 2)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"file_name,text\na.png,x\na.png,a cat, sitting\n", "line 3 has 3 values for 2 columns"),
        ("metadata.csv", b'file_name,text\na.png,x\na.png,"never closed\n', "line 3: unexpected end of data"),
        ("metadata.csv", b"file_name,text,text\na.png,x,y\n", "several columns 'text'"),
        (
            "metadata.jsonl",
            b'{"file_name": "a.png"}\n{"file_name": "a.png", ' + b'"x": "' + b"y" * 3_000_000,
            "line 2:",
        ),
        ("metadata.jsonl", b'{"file_name": "a.png"}\n[1]\n', "line 2 is no JSON object"),
        ("metadata.jsonl", b'{"text": "a"}\n', "line 1 has no text file_name"),
        ("metadata.parquet", b"PAR1", "can't be read"),
    ],
)
def test_damaged_metadata_say_which_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_pictures(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^data: the metadata in .*{name}.*{message}") as caught:
        open_collection(str(tmp_path))
    assert len(str(caught.value)) < 400


def test_a_table_that_names_no_pictures_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("camera,iso\nx,100\n")
    assert open_collection(str(tmp_path)).columns == []
    assert "left out metadata.csv: it has no column file_name" in capsys.readouterr().err


def test_captions_in_files_beside_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, "a.png", "sub/b.png", "c.png", "d.png")
    (tmp_path / "a.txt").write_text("a cat\nin two lines\n")
    (tmp_path / "sub" / "b.caption").write_bytes("café".encode("cp1252"))
    (tmp_path / "c.txt").write_bytes("\ufeff007".encode())
    (tmp_path / "stray.txt").write_text("of no picture")
    assert texts(tmp_path) == {"a.png": "a cat\nin two lines", "c.png": "007", "d.png": None, "sub/b.png": "café"}
    told = capsys.readouterr().err
    assert "pictures without a caption beside them: 1 of 4" in told
    assert "left out by their endings: 1 .txt" in told
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("file_name", "text"), ("a.png", "from the table")])
    (tmp_path / "metadata.csv").write_text(buffer.getvalue())
    assert texts(tmp_path)["a.png"] == "from the table"
    assert "left out 3 captions in files of their own" in capsys.readouterr().err
