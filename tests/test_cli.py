"""The command line as a user meets it, in processes of its own but where torch would be imported again and again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_vae.cli import COMMANDS, main
from ldm_vae.training import opening

HEAVY = ("torch", "diffusers", "datasets", "accelerate", "torchmetrics", "transformers")


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ldm_vae", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=300,
    )


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout


def test_no_help_waits_for_a_heavy_import() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from ldm_vae.cli import main\n"
        f"for arguments in {[['--help'], *([*name.split(), '--help'] for name in COMMANDS)]}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as printed:\n"
        "        try: main(arguments)\n"
        "        except SystemExit as stop: assert not stop.code, (arguments, stop.code)\n"
        f"    assert not {set(HEAVY)} & sys.modules.keys(), arguments\n"
        "    assert len(printed.getvalue().splitlines()) > 5, arguments\n"
        "print('all', end='')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert (result.stdout, result.returncode) == ("all", 0), result.stderr


def test_importing_the_package_is_light() -> None:
    code = f"import sys, ldm_vae; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout == "[]\n"


SMALL = [
    "--model.block_out_channels", "[8, 8]", "--model.norm_num_groups", "4", "--loss.perceptual", "none",
    "--loss.disc_weight", "0", "--report_to", "none", "--data.resolution", "32", "--output_dir", "run",
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["trian"], 2, "unknown command 'trian'; did you mean 'train'?"),
        (["explore"], 2, "'explore' is no command by itself; there are explore sample, explore interpolate"),
        (["explore", "neighbors"], 2, "unknown command 'explore neighbors'; did you mean 'explore neighbours'?"),
        (["train", "--train.batch_sise", "3"], 2, "did you mean '--train.batch_size'?"),
        (["train", "--config", "kl_f8", "--data.resolution", "100"], 2, "does not divide; take 96 or 104"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(arguments: list[str], status: int, message: str, tmp_path: Path) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == status
    assert message in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("ldm-vae")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "data.train is missing"),
        (["--data.train", "./absent"], "ldm-vae: --data.train: "),
        (["--data.train", "./empty"], "holds no image"),
    ],
)
def test_data_is_opened_before_any_network_is_built_or_fetched(
    source: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(opening, "build_state", lambda *_, **__: pytest.fail("a network was built"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["train", *SMALL, *source])
    assert ended.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ldm-vae")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "run").exists()  # nothing was begun


@pytest.mark.parametrize("arguments", [["train", "--help"], ["--version"]], ids=["more than a buffer", "less"])
def test_a_reader_that_ends_first_is_no_error(arguments: list[str]) -> None:
    """As in `ldm-vae train --help | head`, where the pipe closes before all is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        [sys.executable, "-m", "ldm_vae", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=buffered,
        timeout=300,
    )
    os.close(writing)
    assert (ended.stderr, ended.returncode) == (b"", 1)


def test_names_of_any_script_are_printed_in_a_locale_of_ascii(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("output_dir: runs/größe_猫\n", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "ldm_vae", "train", "--config", "my.yaml", "--print_config"],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "runs/größe_猫" in ended.stdout.decode("utf-8")
