"""What check_gpu.py calls right and fast, and the floor that times are measured by."""

from __future__ import annotations

import importlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.launching import SCRIPTS
from tests.pictures import smooth_picture


@pytest.fixture(scope="module")
def patched() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture(scope="module")
def roofline(patched: None) -> ModuleType:
    return importlib.import_module("roofline")


@pytest.fixture(scope="module")
def training(patched: None) -> ModuleType:
    return importlib.import_module("check_gpu_training")


@pytest.fixture(scope="module")
def verdicts(patched: None) -> ModuleType:
    return importlib.import_module("check_gpu_verdicts")


@pytest.fixture(scope="module")
def jpegs(patched: None) -> ModuleType:
    return importlib.import_module("check_gpu_jpeg")


@pytest.fixture(scope="module")
def speed(patched: None) -> ModuleType:
    return importlib.import_module("check_gpu_speed")


def test_work_is_counted(roofline: ModuleType) -> None:
    images = torch.randn(2, 3, 8, 8)
    weight, gain = torch.randn(4, 3, 3, 3, requires_grad=True), torch.ones(4, requires_grad=True)

    def run() -> None:
        hidden = F.conv2d(images, weight, padding=1)
        F.silu(F.group_norm(hidden, 2, gain, torch.zeros(4))).sum().backward()
        F.conv2d(images, weight).sum().backward()  # its gradient is one number, expanded

    work = roofline.counted(run)
    forward = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    second = 2 * (2 * 4 * 6 * 6) * (3 * 3 * 3)
    assert work.flops == 2 * (forward + second)  # no gradient goes to the images
    maps, pictures, kernel = 4 * 2 * 4 * 8 * 8, 4 * 2 * 3 * 8 * 8, 4 * 4 * 3 * 3 * 3
    by_name = {call.name: call.bytes * times for call, times in work.calls.items()}
    assert any(call.name == "convolution" and call.bytes == maps + pictures + kernel for call in work.calls)
    assert by_name["native_group_norm"] == 2 * maps
    assert by_name["native_group_norm_backward"] == 3 * maps
    assert work.convolution_seconds(torch.device("cpu"), at_least=1e-4) > 0

    quick = roofline.Ceiling(name="", flops=1e3, bytes=1e30, measured=False)
    narrow = roofline.Ceiling(name="", flops=1e30, bytes=1e3, measured=False)
    assert work.floor_seconds(quick) == pytest.approx(work.flops / 1e3)
    assert work.floor_seconds(narrow) == pytest.approx(work.bytes / 1e3)


def test_an_error_that_is_no_number_is_wrong(verdicts: ModuleType) -> None:
    words = [verdicts.near("", error, limit=0.1, what="off by").verdict for error in (0.09, 0.11, float("nan"))]
    assert words == ["right", "wrong", "wrong"]
    shares = [verdicts.quick("", share, least=0.6, found="", figures={}).verdict for share in (0.7, 0.5)]
    assert shares == ["fast", "slow"]


def write(folder: Path, name: str, end: float, *, half: float = 1.0) -> None:
    """Write what a run leaves: weights of so much at its half and its end."""
    for step, value in ((3, half), (6, end)):
        checkpoint = folder / name / f"checkpoint-{step:06d}"
        checkpoint.mkdir(parents=True)
        save_file({"w": torch.full((4,), value)}, checkpoint / "autoencoder.safetensors")


def test_runs_are_compared(training: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "cpu-float32", 2.0)
    write(tmp_path, "cpu-bf16", 2.1)
    write(tmp_path, "float32", 2.01)
    write(tmp_path, "bf16", 2.3)
    write(tmp_path, "compiled-float32", 2.5)
    write(tmp_path, "whole", 2.0)
    write(tmp_path, "resumed", 2.0 + 1e-6)
    done = {path.name for path in tmp_path.iterdir()}
    found = {verdict.check: verdict.verdict for verdict in training.compare(tmp_path, done)}
    assert found == {
        "training: resumed, bit by bit": "wrong",
        "training: cpu-bf16 by cpu-float32": "found",
        "training: float32 by cpu-float32": "right",
        "training: bf16 by cpu-float32": "wrong",
        "training: compiled-float32 by float32": "wrong",
    }
    without = {verdict.check for verdict in training.compare(tmp_path, done - {"float32", "resumed", "cpu-bf16"})}
    assert without == {"training: compiled-float32 by cpu-float32"}


def test_a_run_that_fails_is_told_by_its_last_line(training: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    failure = training.perform(training.Run(name="bad", settings={"train.batch_size": -1}), tmp_path)
    assert "train.batch_size" in failure


def test_a_run_that_hangs_ends_with_all_that_it_started(
    training: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    wait = subprocess.Popen.wait

    def wait_for_child(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        """Let the time be over when there is something to end, and never before."""
        if timeout is None:
            return wait(process)
        while not (tmp_path / "slow.log").read_text().endswith("\n"):
            assert process.poll() is None, (tmp_path / "slow.log").read_text()
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(training.Run, "command", lambda run, folder: ["-c", code])
    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_child)
    monkeypatch.setattr(training, "SECONDS", 1000)
    assert training.perform(training.Run(name="slow"), tmp_path) == "not done within 1000 s"
    child = int((tmp_path / "slow.log").read_text())
    until = time.monotonic() + 120
    while time.monotonic() < until:
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("its child lives")


def test_jpeg_decoders_are_compared(jpegs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpegs, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(jpegs, "seconds_of", lambda run, **how: run() and 0.5)
    for name, sampling in (("a", 0), ("b", 2)):
        smooth_picture(96, 80).save(tmp_path / f"{name}.jpg", subsampling=sampling)
    smooth_picture(400, 350).save(tmp_path / "large.jpg")
    found = {verdict.check: verdict for verdict in jpegs.jpeg(tmp_path, small=True)}
    assert found["jpeg: left to the device"].found == "2 of 3 files, at 128²"
    for name in ("colours at every pixel", "fewer colours than pixels"):
        verdict = found[f"jpeg: {name}"]
        assert verdict.verdict == "right"
        assert (verdict.figures["worst"], verdict.figures["files"], verdict.figures["refused"]) == (0, 1, 0)
    assert found["jpeg: the device beside Pillow"].figures["device"] == 4.0

    grey, darker = torch.full((4, 4, 3), 100, dtype=torch.uint8), torch.full((4, 4, 3), 97, dtype=torch.uint8)
    stored = [{"source": (tmp_path / "a.jpg").read_bytes()}]
    (off,) = jpegs.compare(stored, [darker], [grey], refused=0)
    assert (off.verdict, off.figures["worst"]) == ("wrong", 3)  # 38.6 dB
    faster, slower = jpegs.rates(100.0, 700.0, workers=6), jpegs.rates(100.0, 500.0, workers=6)
    assert (faster.verdict, slower.verdict) == ("fast", "slow")
    assert faster.found.endswith("--jpeg_decoder nvjpeg")


def test_what_compiling_gains_is_told(speed: ModuleType) -> None:
    results = [
        {"side": 512, "way": way, "seconds": seconds, "images_per_second": 1 / seconds, "mfu": 0.5,
         "times_the_floor": 2.0, "share_in_convolutions": 0.7}
        for way, seconds in (("bf16", 0.3), ("bf16-compile", 0.2))
    ]  # fmt: skip
    *_, compiled = speed.decoded({"results": results}, "")
    assert compiled.check == "speed: decode 512², compiled"
    assert compiled.found == "1.50 times as fast as without; set LDM_VAE_COMPILE=on"
