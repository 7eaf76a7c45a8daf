"""Names that files tell: which are followed, and that none leads outside."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_vae.system.paths import OutsideFolder, inside
from ldm_vae.system.text import printable


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "./", "..", "../x", "a/../../x", "a/..", "/etc/passwd", "//server/x", "\\x", "\\\\server\\share\\x",
        "..\\x", "a\\..\\..\\x", "C:\\x", "c:/x", "a\0b", "\0", "link/x", "link", "deep/link/x", "file-link",
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text("")
    for link in (folder / "link", folder / "deep" / "link"):
        link.symlink_to(tmp_path / "outside")
    (folder / "file-link").symlink_to(tmp_path / "outside" / "x")
    with pytest.raises(OutsideFolder, match=r"^index\.json: .*; nothing outside .* is touched$"):
        inside(folder, name, source="index.json")


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a/b.png",
        "./a",
        "..a",
        "a..b/c",
        "...",
        "prompt: a cat.png",
        "a\\b",
        "é 猫.png",
        "x" * 255,
        "in/side",
        "~",
    ],
)
def test_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "in").symlink_to(tmp_path / "real")  # a link that stays within
    (tmp_path / "folder-link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "folder-link"):
        assert inside(folder, name) == folder / name


def test_a_snapshot_of_the_hub_leads_to_its_own_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--me--latents"
    for name in ("snapshots/rev/sub", "blobs", "refs"):
        (repository / name).mkdir(parents=True)
    (repository / "blobs" / "sha").write_text("")
    (tmp_path / "secret").write_text("")
    (repository / "snapshots" / "rev" / "sub" / "a").symlink_to("../../../blobs/sha")
    (repository / "snapshots" / "rev" / "b").symlink_to(tmp_path / "secret")
    assert inside(repository / "snapshots" / "rev" / "sub", "a")
    with pytest.raises(OutsideFolder):
        inside(repository / "snapshots" / "rev", "b")


@given(st.text(st.sampled_from("ab./\\:\0~") | st.characters(), max_size=12))
def test_what_is_not_refused_stays(name: str) -> None:
    path = None
    with suppress(OutsideFolder):
        path = inside("/folder", name)
    assert path is None or (Path("/folder") in path.parents and ".." not in path.parts)


def test_text_for_a_terminal() -> None:
    assert printable("猫 é 👩‍🚀 a b.png") == "猫 é 👩‍🚀 a b.png"
    for text in ("a\nb", "a\x1b[2J", "a\x9bH", "\u202egnp.exe", "\udcff", "a\u2028b", "a\rb\tc", "a\u200d"):
        shown = printable(text)
        assert shown.isprintable()
        assert shown.encode("ascii").decode("unicode_escape") == text
