"""Folders that commands write: what may be written, what replacing removes, and where nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_vae.system.output_kinds import DECODED, EVALUATION, EXPORT, KINDS, LATENTS, OutputKind, output_kind
from ldm_vae.system.outputs import OutputFolder

CONFIG = '{"_class_name": "AutoencoderKL"}'


def export_into(folder: Path, *, weights: str = "new", overwrite: bool = False) -> None:
    with OutputFolder(folder, kind=EXPORT).whole(overwrite=overwrite) as temporary:
        (temporary / "config.json").write_text(CONFIG)
        (temporary / "diffusion_pytorch_model.safetensors").write_text(weights)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


EXPORTED = {"config.json", "diffusion_pytorch_model.safetensors"}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "export"

    def fail() -> None:
        with OutputFolder(folder, kind=EXPORT).whole(overwrite=False) as temporary:
            (temporary / "config.json").write_text(CONFIG)
            assert not folder.exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path / "a") == set()
    export_into(folder)
    assert names(folder) == EXPORTED
    assert names(tmp_path / "a") == {"export"}


def test_replacing(tmp_path: Path) -> None:
    export_into(tmp_path / "export", weights="old")
    (tmp_path / "export" / "README.md").write_text("of the old one")
    with pytest.raises(ValueError, match="holds an export already; overwrite replaces it"):
        export_into(tmp_path / "export")
    export_into(tmp_path / "export", overwrite=True)
    assert names(tmp_path / "export") == EXPORTED
    assert (tmp_path / "export" / "diffusion_pytorch_model.safetensors").read_text() == "new"

    (tmp_path / "export" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"holds mine\.txt, which no export wrote; take another folder"):
        export_into(tmp_path / "export", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("kept")
    with pytest.raises(ValueError, match=r"holds README\.md, which no export wrote"):
        export_into(tmp_path / "mine", overwrite=True)
    (tmp_path / "mine" / "config.json").write_text('{"mine": true}')  # of the same name, but not by us
    with pytest.raises(ValueError, match=r"holds config\.json, README\.md, which no export wrote"):
        export_into(tmp_path / "mine", overwrite=True)


def test_what_file_systems_put_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "export" / "lost+found").mkdir(parents=True)
    (tmp_path / "export" / ".DS_Store").write_text("")
    export_into(tmp_path / "export")
    assert names(tmp_path / "export") == EXPORTED | {"lost+found", ".DS_Store"}


def test_a_replacement_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "export"
    export_into(folder, weights="old")
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if target == folder / "config.json" and path.parent.name.startswith(".export."):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        export_into(folder, overwrite=True)
    assert names(folder) == EXPORTED
    assert (folder / "diffusion_pytorch_model.safetensors").read_text() == "old"
    assert (folder / "config.json").read_text() == CONFIG


@pytest.mark.parametrize("is_there", [False, True])
def test_what_another_process_wrote_meanwhile_is_kept(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "export"
    if is_there:
        folder.mkdir()
    output = OutputFolder(folder, kind=EXPORT)

    def beside_another(*, overwrite: bool) -> None:
        with output.whole(overwrite=overwrite) as temporary:
            (temporary / "config.json").write_text(CONFIG)
            export_into(folder, weights="the other's", overwrite=overwrite)

    with pytest.raises(ValueError, match="export holds an export already"):
        beside_another(overwrite=False)
    assert names(folder) == EXPORTED
    assert (folder / "diffusion_pytorch_model.safetensors").read_text() == "the other's"
    assert names(tmp_path) == {"export"}
    beside_another(overwrite=True)
    assert names(folder) == {"config.json"}


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    script = (
        "import os, signal, sys\nfrom ldm_vae.system.output_kinds import EXPORT\n"
        "from ldm_vae.system.outputs import OutputFolder\n"
        "with OutputFolder(sys.argv[1], kind=EXPORT).whole(overwrite=False) as temporary:\n"
        "    (temporary / 'README.md').write_text('half')\n    (temporary / 'README.md').rename(sys.argv[2])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, folder, folder / "README.md"], check=False)
    assert any(name.endswith(".tmp") for name in names(folder))
    export_into(folder, overwrite=True)
    assert names(folder) == EXPORTED


@pytest.mark.parametrize("kind", [EXPORT, DECODED, EVALUATION, LATENTS])
def test_what_can_not_be_written_is_found_before_any_work(tmp_path: Path, kind: OutputKind) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path, message in (
        ("file", "is a file; name a folder"),
        ("dangling", "is a link that leads nowhere"),
        ("file/below", "can't be made: .*file is a file"),
    ):
        with pytest.raises(ValueError, match=rf"^output .*{path} {message}"):
            OutputFolder(tmp_path / path, kind=kind).check(overwrite=True)
    if Path("/proc/self").exists():  # where root can't write either
        with pytest.raises(ValueError, match=r"^output /proc/self/x/y can't be written: /proc/\d+: "):
            OutputFolder("/proc/self/x/y", kind=kind).check(overwrite=True)
    OutputFolder(tmp_path / "new" / "deep", kind=kind).check(overwrite=False)
    assert names(tmp_path) == {"file", "dangling"}


MOUNTED = """
mount -t tmpfs none "$1" && {python} -c '
import sys
from tests.system.test_outputs import export_into, names, EXPORTED
from pathlib import Path
for overwrite in (False, True):
    export_into(Path(sys.argv[1]), overwrite=overwrite)
    assert names(Path(sys.argv[1])) == EXPORTED
' "$1"
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0
    if sys.platform == "linux"
    else True,
    reason="needs a mount namespace",
)
def test_an_empty_mount_point_is_written_into(tmp_path: Path) -> None:
    script = MOUNTED.format(python=sys.executable)
    subprocess.run(["unshare", "-rm", "sh", "-ec", script, "sh", tmp_path], check=True)


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    export_into(Path("~/export"))
    assert names(tmp_path / "export") == EXPORTED


def test_kinds_are_known_by_their_marks(tmp_path: Path) -> None:
    assert output_kind(tmp_path) is None
    assert output_kind(tmp_path / "nowhere") is None
    for kind in KINDS:
        folder = tmp_path / kind.noun
        folder.mkdir()
        (folder / kind.mark).write_bytes(b"" if kind.says else b"x")
        assert (output_kind(folder) is None) == bool(kind.says)
        for says in (b'"AutoencoderKL"', b'"VQModel"') if kind == EXPORT else (kind.says,):
            (folder / kind.mark).write_bytes(b"{ " + says + b" ...")
            assert output_kind(folder) == kind


def test_a_listed_name_outside_removes_nothing(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out", kind=DECODED)
    folder.begin(["a.png"], mark=b'{"picture":"a.png"}')
    (tmp_path / "out" / "a.png").write_text("")
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ValueError, match=r"pictures\.jsonl: '\.\./mine' leads out of its folder"):
        folder.clear(listed=["a.png", "../mine"])
    assert names(tmp_path / "out") == {"a.png", "pictures.jsonl"}
    folder.clear(listed=["a.png"])
    assert names(tmp_path / "out") == set()
    assert (tmp_path / "mine").read_text() == "kept"
