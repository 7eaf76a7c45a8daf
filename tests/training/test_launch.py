"""What a run can be launched by, on one node and on two, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ldm_vae.config.parsing import dump_config
from ldm_vae.config.run import Config
from ldm_vae.training.loop import train
from ldm_vae.training.processes import join_processes
from ldm_vae.training.run_folder import checkpoint_step
from tests.launching import ENVIRONMENT, SCRIPTS, start
from tests.tiny import tiny_config
from tests.training.runs import largest_difference, last_checkpoint

STEPS = 100_000  # of a run that a signal ends
SECONDS = 300  # for what takes a few


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed drives one optimizer"),
        ("ACCELERATE_USE_FSDP", "true", "FSDP shards the weight"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM is for transformers"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "overflow float16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "overflow float16"),
    ],
)  # fmt: skip
def test_launch_that_cannot_be_right_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    """As `accelerate launch` asks for it, and before accelerate imports what it needs."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=reason) as raised:
        join_processes(tiny_config())
    assert "\n" not in str(raised.value)


def test_same_step_weight_with_accumulation_is_refused() -> None:
    config = tiny_config(loss={"adaptive_weight": "same_step"}, train={"micro_batch_size": 2})
    with pytest.raises(ValueError, match="which needs the whole batch at once"):
        join_processes(config)


def smooth_config(run: Path, pictures: Path, *, steps: int, num_workers: int = 1) -> Config:
    """Without GAN and kinks: by any number of processes up to rounding."""
    return tiny_config(
        output_dir=run,
        data={"train": str(pictures), "num_workers": num_workers},
        loss={"reconstruction": "l2", "disc_weight": 0.0},
        train={"max_train_steps": steps, "adam_epsilon": 1e-4, "log_steps": 5, "checkpointing_steps": steps},
    )


def wait_for(path: Path, process: subprocess.Popen[bytes], printed: Path) -> None:
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None, printed.read_text()
        assert time.monotonic() < until, printed.read_text()
        time.sleep(0.1)


def stopped_step(run: Path, printed: Path, name: str) -> int:
    """The step in which a signal ended the run."""
    step = checkpoint_step(last_checkpoint(run))
    assert f"Stopped by {name} after {step} steps, saved in {run}/checkpoint-" in printed.read_text()
    assert 0 < step < STEPS
    return step


def assert_like_one_process(run: Path, pictures: Path, *, step: int) -> None:
    alone = run.with_name(f"{run.name}-alone")
    train(smooth_config(alone, pictures, steps=step, num_workers=0))
    assert largest_difference(run, alone) < 1e-5


@pytest.mark.processes
def test_accelerate_launches_and_sigterm_saves(tmp_path: Path, pictures: Path) -> None:
    run, printed = tmp_path / "run", tmp_path / "printed.txt"
    (tmp_path / "config.yaml").write_text(dump_config(smooth_config(run, pictures, steps=STEPS)))
    launcher = start(
        ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
         "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
         "-m", "ldm_vae", "train", "--config", str(tmp_path / "config.yaml")],
        output=printed,
        ACCELERATE_USE_CPU=str(torch.accelerator.is_available()).lower(),  # said only where there is another choice
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT=str(SECONDS),  # else the launcher kills who hasn't saved within half a minute
    )  # fmt: skip
    wait_for(run / "metrics.jsonl", launcher, printed)
    launcher.send_signal(signal.SIGTERM)  # which torch's launcher passes on, and then calls a failure of its own
    launcher.wait(timeout=SECONDS)
    assert "Images a step: 4 = 2 (processes) x 1 (micro-batches) x 2" in printed.read_text()
    assert_like_one_process(run, pictures, step=stopped_step(run, printed, "SIGTERM"))


SRUN = """#!/bin/bash
# Starts a command on two nodes, both of them here, and tells scancel whose processes they are.
shift
echo $$ > "$STEP"
for node in 0 1; do "$@" & done
for job in $(jobs -p); do wait "$job" || status=1; done
exit "${status:-0}"
"""
SCANCEL = """#!{python}
import contextlib, os, pathlib, psutil, signal, sys
assert sys.argv[1:] == ["--signal=USR1", os.environ["SLURM_JOB_ID"]]
step = psutil.Process(int(pathlib.Path(os.environ["STEP"]).read_text()))
for process in step.children(recursive=True):
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGUSR1)
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost
[ "$1" = requeue ] && echo "requeued $2"
exit 0
"""
TORCHRUN = """#!/bin/bash
exec {python} -m torch.distributed.run "$@"
"""


@pytest.mark.processes
def test_slurm_script_runs_two_nodes_and_requeues(tmp_path: Path, pictures: Path) -> None:
    """Two launchers, one rendezvous; USR1 shortly before the end of the job's time."""
    run, printed = tmp_path / "run", tmp_path / "printed.txt"
    (tmp_path / "config.yaml").write_text(dump_config(smooth_config(run, pictures, steps=STEPS)))
    for name, script in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
        (tmp_path / name).write_text(script.replace("{python}", sys.executable))
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "local[0-1]"}
    environment = os.environ | ENVIRONMENT | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with printed.open("wb") as file:
        job = subprocess.Popen(
            [SCRIPTS / "train_slurm.sh", "--config", tmp_path / "config.yaml"],
            env=environment | {"STEP": str(tmp_path / "step")},
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    wait_for(run / "metrics.jsonl", job, printed)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=SECONDS) == 0, printed.read_text()
    assert f"requeued {os.getpid()}" in printed.read_text()
    assert "Images a step: 4 = 2 (processes) x 1 (micro-batches) x 2" in printed.read_text()
    assert_like_one_process(run, pictures, step=stopped_step(run, printed, "SIGUSR1"))
