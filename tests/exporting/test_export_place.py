"""Where an export is written: found out before measuring, whole or absent, nothing of others lost."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import constants

import ldm_vae.exporting.files
from ldm_vae.cli import main
from ldm_vae.config.parsing import dump_config, load_config
from ldm_vae.models.load import load_autoencoder
from ldm_vae.training.checkpoint_files import MANIFEST, write_manifest
from tests.encodings import contents
from tests.exporting.runs import export_run
from tests.launching import start_forked
from tests.pictures import save_pictures
from tests.stores import memory_contents

NOT_ALLOWED = 77
"""Status of a process that may not mount."""


def test_others_may_read_an_export_as_the_umask_lets_them(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        export_run(run, tmp_path / "vae")
        export_run(run, tmp_path / "vae.safetensors", format="ldm")
    finally:
        os.umask(before)
    written = [*(tmp_path / "vae").iterdir(), tmp_path / "vae.safetensors"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}


def test_an_address_gets_what_a_folder_gets(run: Path, tmp_path: Path) -> None:
    address = f"memory://{uuid.uuid4().hex}"
    expected = export_run(run, tmp_path / "vae")
    summary = export_run(run, f"{address}/vae")
    assert str(summary).startswith(f"{address}/vae: checkpoint-000002, scaling_factor")
    here, there = contents(tmp_path / "vae"), memory_contents(f"{address}/vae")
    assert here.keys() == there.keys()
    assert all(there[name] == here[name] for name in here if name != "README.md")
    weights = load_autoencoder(f"{address}/vae").state_dict()
    assert all(
        torch.equal(weights[name], value) for name, value in load_autoencoder(expected.output).state_dict().items()
    )
    with pytest.raises(ValueError, match=rf"output {address}/vae holds an export already; overwrite replaces it"):
        export_run(run, f"{address}/vae")
    export_run(run, f"{address}/single.safetensors", format="ldm")
    assert (
        load_autoencoder(f"{address}/single.safetensors").config["scaling_factor"] == expected.config["scaling_factor"]
    )
    with pytest.raises(ValueError, match=rf"output {address}/single\.safetensors is there already; overwrite"):
        export_run(run, f"{address}/single.safetensors", format="ldm")
    with pytest.raises(ValueError, match=r"push_to_hub uploads a folder of this machine, and output is an address"):
        export_run(run, f"{address}/other", push_to_hub="me/vae")


def test_a_single_file_comes_with_what_others_make_of_it(run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae.safetensors", format="ldm")
    assert "ComfyUI and A1111 build kl-f8 whatever a file holds" in str(summary)
    assert export_run(run, tmp_path / "vae").notes == []


def run_mounted(function: Callable[[Path], None], run: Path, *, size: str, folder: Path) -> list[str]:
    """Call a function with a run, in a folder whose subfolder `mounted` is an empty file system of its own."""
    (folder / "mounted").mkdir()
    printed = folder / "printed.txt"
    process = start_forked(_call_mounted, function, run, size, output=printed)
    process.join(timeout=600)
    if process.exitcode == NOT_ALLOWED:
        pytest.skip("mounts aren't allowed here")
    assert process.exitcode == 0, printed.read_text()
    return printed.read_text().splitlines()


def _call_mounted(function: Callable[[Path], None], run: Path, size: str) -> None:
    new_mount_namespace = 0x20000  # CLONE_NEWNS
    commands = ["mount --make-rprivate /", f"mount -t tmpfs -o size={size} none mounted"]
    if ctypes.CDLL(None).unshare(new_mount_namespace) or any(subprocess.call(each.split()) for each in commands):
        sys.exit(NOT_ALLOWED)
    function(run)


def fill_mounted(run: Path) -> None:
    main(["export", "--run", str(run), "--output", "mounted", "--num_workers", "0"])
    print(*sorted(os.listdir("mounted")))
    main(["convert", "vae.safetensors", "mounted", "--overwrite"])
    print(*sorted(os.listdir("mounted")))


def overfill_mounted(run: Path) -> None:
    for output, layout in (("mounted/vae", "diffusers"), ("mounted/vae.safetensors", "ldm")):
        with pytest.raises(SystemExit) as end:
            main(["export", "--run", str(run), "--output", output, "--format", layout])
        print(end.value.code, os.listdir("mounted"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount needs root")
def test_an_empty_mount_point_is_filled(run: Path, tmp_path: Path) -> None:
    """As containers and cloud jobs give their output folder; it can't be renamed away."""
    export_run(run, tmp_path / "vae.safetensors", format="ldm")
    lines = run_mounted(fill_mounted, run, size="100m", folder=tmp_path)
    whole = "README.md config.json diffusion_pytorch_model.safetensors measurements.json reconstruction.png"
    assert whole in lines
    assert lines[-1] == "config.json diffusion_pytorch_model.safetensors"


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount needs root")
def test_a_full_disk_names_the_output_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    lines = run_mounted(overfill_mounted, run, size="16k", folder=tmp_path)
    assert [line for line in lines if line.startswith("1 ")] == ["1 []", "1 []"]
    told = [line for line in lines if "can't be written" in line]
    reason = "can't be written: No space left on device"
    files = ["mounted/vae/diffusion_pytorch_model.safetensors", "mounted/vae.safetensors"]
    assert told == [f"ldm-vae: {file} {reason}" for file in files]


@pytest.mark.parametrize("name", ["vae", "vae.safetensors"])
def test_what_cannot_be_written_is_found_before_measuring(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ldm_vae.exporting.measurements, "measure_latents", lambda *_, **__: pytest.fail("it was measured")
    )
    (tmp_path / "file").write_text("no folder")
    layout = "ldm" if name.endswith(".safetensors") else "diffusers"
    for parent, reason in ((tmp_path / "file", "is a file"), (Path("/proc/here"), "can't be written")):
        with pytest.raises(ValueError, match=reason):
            export_run(run, parent / name, format=layout)


def test_output_is_refused_before_any_work_and_never_lost(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "vae"
    first = export_run(run, output, num_images=2)
    with pytest.raises(ValueError, match="overwrite"):
        export_run(run, output)
    with monkeypatch.context() as patch:

        def full_disk(*_: object, **__: object) -> None:
            raise OSError("no space left on device")

        patch.setattr(ldm_vae.exporting.files, "save_grid", full_disk)
        with pytest.raises(OSError, match="no space"):
            export_run(run, output, overwrite=True)
    assert AutoencoderKL.load_config(output)["scaling_factor"] == first.config["scaling_factor"]
    second = export_run(run, output, overwrite=True)
    assert AutoencoderKL.load_config(output)["scaling_factor"] == second.config["scaling_factor"]
    assert second.config["scaling_factor"] != first.config["scaling_factor"]
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        export_run(run, output, overwrite=True)
    assert (output / "thesis.tex").read_text() == "years of work"


def test_what_cannot_be_used_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    for match, source, options in (
        ("no run", tmp_path, {}),
        ("checkpoint-000009", run, {"checkpoint": "checkpoint-000009"}),
        ("nowhere", run, {"data": str(tmp_path / "nowhere")}),
        (r"broken\.png", run, {"strict": True}),
        (r"\.safetensors", run, {"format": "ldm"}),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            export_run(source, tmp_path / "vae", **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_s_hub_id_stays_one_whatever_lies_here(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it trained on isn't the folder that has the same name where `export` happens to be started."""
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-000002"
    config = load_config(checkpoint / "config.yaml")
    data = replace(config.data, train="someone/photos")
    (checkpoint / "config.yaml").write_text(dump_config(replace(config, data=data)))
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint)
    save_pictures(tmp_path / "someone" / "photos", count=2, size=(16, 16))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"data\.train: someone/photos is .* the hub could give"):
        export_run(tmp_path / "run", tmp_path / "vae")
