"""The training runs that check_gpu.py compares: processes of the command line, on made pictures."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from check_gpu_verdicts import Verdict, near
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

STEPS, HALF = 6, 3
SECONDS = 420 if torch.cuda.is_available() else 1200  # of a run, compiling included
FLOAT32_LIMIT = 0.02
"""Of an update's length. Rounding decides at kinks and where gradients are near zero; a wrong step is off by 1."""
BF16_FACTOR = 2.0  # how far a device's bf16 may be from float32, of how far the CPU's bf16 is

# Smooth functions alone, and an epsilon under which Adam doesn't turn rounding into updates.
SETTINGS = {
    "model.block_out_channels": "[32,64]", "model.layers_per_block": 1, "model.norm_num_groups": 8,
    "data.resolution": 64, "data.num_workers": 0, "data.flip": "true",
    "loss.reconstruction": "l2", "loss.perceptual": "none", "loss.disc_start": 1, "loss.disc_channels": 16,
    "train.batch_size": 8, "train.max_train_steps": STEPS, "train.learning_rate": 1e-3, "train.adam_epsilon": 1e-4,
    "train.ema_decay": 0.9, "train.log_steps": 1, "train.validation_steps": 1000, "train.checkpointing_steps": HALF,
    "train.compile": "off", "report_to": "none",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run and how it is started."""

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    on_cpu: bool = False
    processes: int = 1
    resumes: str | None = None
    """The run from whose half it goes on."""

    def command(self, folder: Path) -> list[str]:
        """Return the arguments of Python."""
        settings = {**SETTINGS, **self.settings, "data.train": folder / "pictures", "output_dir": folder / self.name}
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [
            *(launcher if self.processes > 1 else []),
            *("-m", "ldm_vae", "train", "--config", "kl_f8"),
            *(f"--{name}={value}" for name, value in settings.items()),
            *(["--train.resume_from_checkpoint=latest"] if self.resumes else []),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the run: exact float32 where it is float32, and which device."""
        chosen = {"NVIDIA_TF32_OVERRIDE": "0", "HF_HUB_OFFLINE": "1"}
        return {**chosen, "ACCELERATE_USE_CPU": "true"} if self.on_cpu else chosen


FLOAT32, BF16, COMPILED = {"train.mixed_precision": "no"}, {"train.mixed_precision": "bf16"}, {"train.compile": "on"}


def planned() -> list[Run]:
    """Return the runs that there is something to run on for."""
    on_gpu = torch.cuda.is_available()
    deterministic = {"train.deterministic": "true", **(BF16 if on_gpu else FLOAT32)}
    runs = [
        Run(name="cpu-float32", settings=FLOAT32, on_cpu=True),
        Run(name="cpu-bf16", settings=BF16, on_cpu=True),
        Run(name="compiled-float32", settings=FLOAT32 | COMPILED),
        Run(name="whole", settings=deterministic),
        Run(name="resumed", settings=deterministic, resumes="whole"),
    ]
    if on_gpu:
        runs += [
            Run(name="float32", settings=FLOAT32),
            Run(name="bf16", settings=BF16),
            Run(name="compiled-bf16", settings=BF16 | COMPILED),
            Run(name="checkpointed", settings=FLOAT32 | {"train.gradient_checkpointing": "blocks"}),
        ]
    devices = torch.cuda.device_count() if on_gpu else 2
    if devices > 1:
        processes = next(number for number in (8, 4, 2) if number <= devices)
        runs.append(Run(name="processes", settings=FLOAT32, processes=processes))
    return runs


def check_training(folder: Path, *, jobs: int) -> Iterator[Verdict]:
    """Make the runs, and yield what their weights say."""
    make_pictures(folder / "pictures")
    runs = {run.name: run for run in planned()}
    with ThreadPoolExecutor(jobs) as threads:
        first = {name: threads.submit(perform, run, folder) for name, run in runs.items() if run.resumes is None}
        failures = {name: future.result() for name, future in first.items()}
        then = {name: threads.submit(perform, run, folder) for name, run in runs.items() if run.resumes is not None}
        failures |= {name: future.result() for name, future in then.items()}
    for name, failure in failures.items():
        if failure is not None:
            yield Verdict(check=f"training: {name}", verdict="failed", found=failure)
    done = {name for name, failure in failures.items() if failure is None}
    yield from compare(folder, done)


def compare(folder: Path, done: set[str]) -> Iterator[Verdict]:
    """Yield what the weights of the runs that ended well say."""
    if {"whole", "resumed"} <= done:
        a, b = (all_tensors(folder / name) for name in ("whole", "resumed"))
        differing = [name for name in a if name not in b or not torch.equal(a[name], b[name])]
        yield Verdict(
            check="training: resumed, bit by bit",
            verdict="wrong" if differing or a.keys() != b.keys() else "right",
            found=f"{len(differing)} of {len(a)} tensors differ" if differing else f"{len(a)} tensors are equal",
            figures={"differing": differing[:10]},
        )
    of_cpu = distance(folder, "cpu-bf16", "cpu-float32") if {"cpu-bf16", "cpu-float32"} <= done else None
    pairs = [
        ("float32", "cpu-float32", FLOAT32_LIMIT),
        ("bf16", "cpu-float32", None),
        ("compiled-float32", "float32" if "float32" in done else "cpu-float32", FLOAT32_LIMIT),
        ("compiled-bf16", "cpu-float32", None),
        ("checkpointed", "float32", FLOAT32_LIMIT),
        ("processes", "float32" if "float32" in done else "cpu-float32", FLOAT32_LIMIT),
    ]
    if of_cpu is not None:
        yield Verdict(
            check="training: cpu-bf16 by cpu-float32",
            verdict="found",
            found=f"{of_cpu:.2g} of the update apart, which is bf16's rounding",
            figures={"distance": of_cpu},
        )
    for name, base, limit in pairs:
        if {name, base} <= done and (limit is not None or of_cpu is not None):
            within = limit if limit is not None else BF16_FACTOR * (of_cpu or 0.0)
            yield near(f"training: {name} by {base}", distance(folder, name, base), limit=within, what="apart by")


def perform(run: Run, folder: Path) -> str | None:
    """Make a run; return why it failed, or None."""
    output = folder / run.name
    shutil.rmtree(output, ignore_errors=True)
    if run.resumes is not None:
        half = f"checkpoint-{HALF:06d}"
        shutil.copytree(folder / run.resumes / half, output / half)
        for name in ("config.yaml", "data_names.txt.gz"):
            shutil.copy(folder / run.resumes / name, output / name)
    with (folder / f"{run.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *run.command(folder)],
            env={**os.environ, **run.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return f"not done within {SECONDS} s"
        finally:
            kill_group(process)
    printed = (folder / f"{run.name}.log").read_text(errors="replace").strip()
    if status != 0:
        return printed.splitlines()[-1] if printed else f"status {status}"
    return None if f"= {run.processes} (processes)" in printed else f"it did not run on {run.processes} processes"


def kill_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a session, and all that it started."""
    with contextlib.suppress(ProcessLookupError):  # where all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def distance(folder: Path, name: str, base: str) -> float:
    """Return how far a run's weights end from another's, as a part of how far those moved in the second half."""
    ours, theirs, before = (
        torch.cat([weights[key].double().flatten() for key in sorted(weights)])
        for weights in (
            load_file(folder / run / f"checkpoint-{step:06d}" / "autoencoder.safetensors")
            for run, step in ((name, STEPS), (base, STEPS), (base, HALF))
        )
    )
    return float((ours - theirs).norm() / (theirs - before).norm())


def all_tensors(run: Path) -> dict[str, Tensor]:
    """Return all tensors of a run's last checkpoint, by file and name."""
    files: Sequence[Path] = sorted((run / f"checkpoint-{STEPS:06d}").glob("*.safetensors"))
    return {f"{path.name}: {name}": tensor for path in files for name, tensor in load_file(path).items()}


def make_pictures(folder: Path) -> None:
    """Write sixteen smooth pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(16):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((80, 80), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
