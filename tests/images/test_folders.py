from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ldm_vae.images.collection import open_collection
from ldm_vae.images.folders import list_folder
from tests.images.test_collection import names, write_parquet
from tests.pictures import encoded, write_grey


def write_outputs(root: Path) -> list[str]:
    """Write what each command leaves behind, with pictures in it; return the folders."""
    content = {
        "run": ("config.yaml", "output_dir: here\nmax_train_steps: 3\n"),
        "export": ("config.json", '{"_class_name": "AutoencoderKL"}'),
        "encode": ("plan.json", '{"format":"ldm-vae latents"}'),
        "decoded": ("pictures.jsonl", '{"picture":"a.png","row":0,"sample":0,"source":"a.png"}\n'),
        "evaluated": ("metrics.json", '{"options": {}}'),
        "quick": (".ldm-vae-quickstart", ""),
    }
    for folder, (name, text) in content.items():
        write_grey(root / folder / "samples" / "step-1.png", 9)
        write_grey(root / folder / "picture.png", 9)
        (root / folder / name).write_text(text)
    return sorted(content)


def test_what_commands_wrote_is_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grey(tmp_path / "a.png", 1)
    write_grey(tmp_path / "sub" / "b.png", 2)
    before = list(open_collection(str(tmp_path)).data_names())
    folders = write_outputs(tmp_path)
    write_outputs(tmp_path / "sub")
    (tmp_path / "own").mkdir()
    for name in ("config.yaml", "config.json", "plan.json", "metrics.json"):  # somebody else's files of these names
        (tmp_path / "own" / name).write_text("{}")
    write_grey(tmp_path / "own" / "c.png", 3)
    collection = open_collection(str(tmp_path))
    assert names(collection) == ["a.png", "own/c.png", "sub/b.png"]
    assert list(collection.data_names()) == ["a.png", "own/c.png", "sub/b.png"] != before
    told = capsys.readouterr().err.splitlines()
    assert [
        line for line in told if f"left out {2 * len(folders)} folders that ldm-vae wrote: decoded (decode)" in line
    ]
    open_collection(str(tmp_path))
    assert capsys.readouterr().err == ""
    assert names(open_collection(str(tmp_path / "**" / "*.png"))) == ["a.png", "own/c.png", "sub/b.png"]
    assert names(open_collection(str(tmp_path / "run" / "samples"))) == ["step-1.png"]  # asked for by name


def test_a_run_written_into_the_folder_of_its_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "samples/step-000002.png", "checkpoint-000002/x.png", "more/b.png"):
        write_grey(tmp_path / name, 1)
    (tmp_path / "config.yaml").write_text("output_dir: here\n")
    assert names(open_collection(str(tmp_path))) == ["a.png", "more/b.png"]


def test_data_names_follow_files_and_slices(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_grey(tmp_path / name, 1)
    assert list(open_collection(str(tmp_path)).data_names()) == ["a.png", "b.png"]
    assert list(open_collection(str(tmp_path), split="train[1:]").data_names()) == ["b.png"]
    write_parquet(tmp_path / "table" / "x.parquet", [1, 2])
    table = list(open_collection(str(tmp_path / "table")).data_names())
    write_parquet(tmp_path / "table" / "x.parquet", [1, 2, 3])
    assert list(open_collection(str(tmp_path / "table")).data_names()) != table


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_tables_and_pictures_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = encoded(Image.new("L", (4, 4), 7), "PNG")
    write_grey(tmp_path / "clone" / "assets" / "preview.png", 1)
    write_parquet(tmp_path / "clone" / "data" / "train-00000-of-00001.parquet", list(range(50)))
    assert len(open_collection(str(tmp_path / "clone"))) == 50
    assert "left out 1 picture file beside them, such as assets/preview.png" in capsys.readouterr().err
    write_grey(tmp_path / "tars" / "preview.png", 1)
    write_tar(tmp_path / "tars" / "0.tar", {f"{number}.png": png for number in range(20)})
    assert len(open_collection(str(tmp_path / "tars"))) == 20
    for number in range(30):
        write_grey(tmp_path / "pictures" / f"{number}.png", number)
    write_parquet(tmp_path / "pictures" / "preview.parquet", [1, 2])
    assert len(open_collection(str(tmp_path / "pictures"))) == 30
    write_parquet(tmp_path / "both" / "x.parquet", [1, 2, 3])
    write_grey(tmp_path / "both" / "a.png", 1)
    write_parquet(tmp_path / "kinds" / "x.parquet", [1])
    write_tar(tmp_path / "kinds" / "y.tar", {"1.png": png})
    for folder, found in (
        ("both", r"1 picture file, and 1 \.parquet file with 3 pictures; name one kind"),
        ("kinds", r"1 \.parquet file and 1 \.tar file; name one kind"),
    ):
        with pytest.raises(ValueError, match=f"^data: the folder .*/{folder} holds {found}"):
            open_collection(str(tmp_path / folder))


def test_left_out_files_are_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.JPG", "c.jfif", "d.TIF"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    for name in ("e.cr2", "noending", "f.cr2", "README.md", ".DS_Store", "._a.png", "notes.txt", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    write_grey(tmp_path / "folder.png" / "g.png", 1)
    assert names(open_collection(str(tmp_path))) == ["a.png", "b.JPG", "c.jfif", "d.TIF", "folder.png/g.png"]
    told = capsys.readouterr().err
    assert "left out by their endings: 2 .cr2, 1 without ending, 1 .txt" in told
    assert "left out 1 pipe, socket or device: pipe.png" in told
    assert "left out 1 hidden file called like pictures" in told
    assert list_folder(str(tmp_path)).left_out.total() == 4


def test_a_folder_of_nothing_but_other_files_says_which(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J.xyz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no image, but 1 \.xyz; give a folder"):
        open_collection(str(tmp_path))


def test_links_that_lead_outside_are_followed_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grey(tmp_path / "far" / "a.png", 1)
    write_grey(tmp_path / "data" / "b.png", 2)
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "far" / "a.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "near.png").symlink_to("b.png")
    (tmp_path / "data" / "nowhere.png").symlink_to("missing.png")
    found = names(open_collection(str(tmp_path / "data")))
    assert found == ["b.png", "folder/a.png", "link.png", "near.png", "nowhere.png"]
    assert "follows 2 links to the outside: folder, link.png" in capsys.readouterr().err
