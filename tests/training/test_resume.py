"""Real processes, killed, stopped or broken at chosen moments: the run that goes on ends like one that never was."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from safetensors.torch import load_file

from tests.launching import SCRIPTS, finish, run_script, start_forked
from tests.training.changes import (
    Change,
    FullDiskInSave,
    KilledBeforeRename,
    KilledInRemoval,
    KilledInSave,
    SignalInStep,
    SilentInStep,
    SmoothNetworks,
    WorkerKilledInStep,
)
from tests.training.drive import run_together
from tests.training.jobs import Damage, ForkedJob
from tests.training.runs import assert_bit_equal, damage, largest_difference, last_checkpoint, metrics

pytestmark = pytest.mark.processes

STEPS = 6
LAST = f"checkpoint-{STEPS:06d}"
STREAMS = {"stream-empty_shard": "*.parquet", "stream-one_file": "0.parquet"}  # for 3 processes
RATE = re.compile(r"\dstep/s|\ds/step|\?step/s")  # of a fast run, of a slow one, and of one that has just begun
TAIL = re.compile(r"go on with train\.resume_from_checkpoint \((.*\.yaml, )?line \d+\) latest$")


@dataclass(frozen=True)
class Runs:
    """What the runs of a folder left."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    def statuses(self, name: str) -> list[int | None]:
        return json.loads((self.folder / f"{name}-ended.json").read_text())["statuses"]

    def left(self, name: str) -> list[str]:
        """Names in the run's folder when `name` ended."""
        return json.loads((self.folder / f"{name}-ended.json").read_text())["left"]

    def printed(self, name: str, *, rank: int = 0) -> list[str]:
        """Lines but for the progress bar's."""
        lines = (self.folder / f"{name}-{rank}.txt").read_text().replace("\r", "\n").splitlines()
        return [line.strip() for line in lines if line.strip() and not RATE.search(line)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pictures: Path, shards: Path) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    jobs: list[ForkedJob] = []

    def add(name: str, *changes: Change, run: str | None = None, processes: int = 1, **fields: Any) -> None:
        """A new run, or one that goes on in the folder of `run`; what it prints is filed under `name`."""
        train = {"max_train_steps": STEPS, "checkpointing_steps": 2, "log_steps": 4, "adam_epsilon": 1e-4,
                 "checkpoints_total_limit": None, "resume_from_checkpoint": "latest" if run else None}  # fmt: skip
        config = {
            "output_dir": str(runs.path(run or name)),
            "data": {"train": str(pictures), "validation": str(pictures)} | fields.pop("data", {}),
            "loss": {"reconstruction": "l2", "learn_logvar": True},
            "train": train | fields.pop("train", {}),
            "overwrite": fields.pop("overwrite", False),
        }
        changed = (SmoothNetworks(), *changes)
        jobs.append(ForkedJob(name=name, config=config, changes=changed, num_processes=processes, **fields))

    def interrupted(name: str, *changes: Change, **fields: Any) -> None:
        """A run that ends before its time, and the one that goes on with it."""
        add(name, *changes, **fields)
        add(f"{name}-resumed", run=name, **fields)

    add("whole-1")
    add("whole-2", processes=2)
    interrupted("killed", SignalInStep("SIGKILL", rank=0, step=5))
    interrupted("killed_in_save", KilledInSave(save=2, file=3))
    interrupted("killed_before_name", KilledBeforeRename(save=3), train={"checkpoints_total_limit": 1})
    interrupted("killed_in_removal", KilledInRemoval(saves=2), train={"checkpoints_total_limit": 1})
    interrupted("terminated", SignalInStep("SIGTERM", rank=0, step=3))
    interrupted("rank_killed", SignalInStep("SIGKILL", rank=1, step=5), processes=2)
    interrupted("main_killed_in_save", KilledInSave(save=2, file=4), processes=2)
    interrupted("one_rank_signalled", SignalInStep("SIGUSR1", rank=1, step=3), processes=2)
    add("whole-3", processes=3, train={"batch_size": 6})  # from 3 on, the order of DDP's sums matters
    interrupted("one_of_three_killed", SignalInStep("SIGKILL", rank=2, step=5), processes=3, train={"batch_size": 6})
    interrupted("full_disk", FullDiskInSave(save=2), processes=2)
    add("worker_killed", WorkerKilledInStep(rank=1, step=3), processes=2, data={"num_workers": 1})
    add("silent", SilentInStep(rank=1, step=3), processes=2, train={"timeout_minutes": 0.25})

    add("flipped-resumed", run="flipped", copy_of="whole-1", damage=Damage(f"{LAST}/optimizer.safetensors", "flip"))
    add("truncated-resumed", run="truncated", copy_of="whole-1", damage=Damage(f"{LAST}/ema.safetensors", "cut"))
    add("moved", SignalInStep("SIGTERM", rank=0, step=3), processes=2)
    add("moved-resumed", run="moved")

    add("refused", run="older", copy_of="whole-1", train={"resume_from_checkpoint": "checkpoint-000002"})
    add("rewound", run="older", train={"resume_from_checkpoint": "checkpoint-000002"}, overwrite=True)
    add("anew", run="whole-1", train={"resume_from_checkpoint": None})

    stream = {"train": str(shards / "[01].parquet"), "streaming": True}
    add("stream-whole", processes=2, data=stream)
    interrupted("stream", SignalInStep("SIGKILL", rank=0, step=5), processes=2, data=stream)
    for name, files in STREAMS.items():
        data = {"train": str(shards / files), "streaming": True, "validation_images": 2}
        add(name, processes=3, data=data, train={"batch_size": 6})
    add("missing", processes=2, started=1, train={"timeout_minutes": 0.03})

    idle = [job for job in jobs if job.name in ("silent", "missing")]
    run_together(runs.folder, forked=[job for job in jobs if job not in idle], idle=idle)
    return runs


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Parquet files of 8, 3 and no images."""
    folder = tmp_path_factory.mktemp("shards")
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(pictures.iterdir())]
    features = datasets.Features({"image": datasets.Image()})
    for number, part in enumerate((cells[:8], cells[8:], [])):
        table = datasets.Dataset.from_dict({"image": part}, features=features)
        table.to_parquet(folder / f"{number}.parquet")
    return folder


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("killed", "whole-1"), ("killed_in_save", "whole-1"), ("killed_before_name", "whole-1"),
        ("killed_in_removal", "whole-1"), ("terminated", "whole-1"), ("rank_killed", "whole-2"),
        ("main_killed_in_save", "whole-2"), ("one_rank_signalled", "whole-2"), ("full_disk", "whole-2"),
        ("one_of_three_killed", "whole-3"), ("stream", "stream-whole"), ("flipped", "whole-1"),
        ("truncated", "whole-1"),
    ],
)  # fmt: skip
def test_resumed_run_ends_bit_equal(runs: Runs, name: str, whole: str) -> None:
    """Weights, average, both optimizers, schedules, lam, sums and metrics.jsonl, without gap or double."""
    assert set(runs.statuses(whole)) == {0}
    assert set(runs.statuses(f"{name}-resumed")) == {0}
    assert last_checkpoint(runs.path(name)).name == LAST
    assert_bit_equal(runs.path(name), runs.path(whole))
    assert [line["step"] for line in metrics(runs.path(name))] == [3, 4, 6, 6]
    assert not [path for path in runs.path(name).iterdir() if path.name.startswith(".")]


def test_comparison_sees_one_bit(runs: Runs, tmp_path: Path) -> None:
    for file in ("optimizer.safetensors", "discriminator_optimizer.safetensors", "ema.safetensors"):
        run = tmp_path / file
        shutil.copytree(runs.path("whole-1"), run)
        damage(run / LAST / file, how="flip")
        with pytest.raises(AssertionError, match=file):
            assert_bit_equal(run, runs.path("whole-1"))


@pytest.mark.parametrize(
    ("name", "statuses", "left", "checkpoints"),
    [
        ("killed_in_save", [-9], ".checkpoint-000003.unfinished", [2]),
        ("killed_before_name", [-9], ".checkpoint-000004.unfinished", [3]),
        ("killed_in_removal", [-9], ".checkpoint-000002.removed", [3]),
        ("main_killed_in_save", [-9, 1], ".checkpoint-000003.unfinished", [2]),
    ],
)
def test_kill_in_a_write_leaves_nothing_that_is_taken_for_a_checkpoint(
    runs: Runs, name: str, statuses: list[int], left: str, checkpoints: list[int]
) -> None:
    assert runs.statuses(name) == statuses
    assert left in runs.left(name)
    assert [file for file in runs.left(name) if file.startswith("checkpoint-")] == [
        f"checkpoint-{step:06d}" for step in checkpoints
    ]


def test_resume_with_another_number_of_processes_keeps_the_data_order(runs: Runs) -> None:
    """Begun by 2, ended by 1: the weights are those of 1 alone, up to rounding."""
    assert runs.statuses("moved-resumed") == [0]
    assert largest_difference(runs.path("moved"), runs.path("whole-1")) < 1e-5


@pytest.mark.parametrize(
    ("name", "rank", "said"),
    [
        ("rank_killed", 0, "ldm-vae: waiting for the other processes in step 5 broke off: one of them ended"),
        ("main_killed_in_save", 1, "ldm-vae (process 1): waiting for the other processes (for the main one to write"),
        ("silent", 0, "ldm-vae: waiting for the other processes in step 3 broke off"),
        ("worker_killed", 0, "ldm-vae: waiting for the other processes in step 3 broke off"),
        ("missing", 0, "ldm-vae: waiting for the other processes to join them broke off"),
    ],
)
def test_lost_process_is_told_in_one_line(runs: Runs, name: str, rank: int, said: str) -> None:
    """Which wait it was, and what to do; none hangs."""
    assert runs.statuses(name)[rank] == 1
    *before, last = runs.printed(name, rank=rank)
    assert last.startswith(said)
    assert TAIL.search(last)
    assert not any("Traceback" in line or "Error" in line for line in before)


def test_dead_data_worker_is_told_in_one_line(runs: Runs) -> None:
    assert runs.statuses("worker_killed") == [1, 1]
    assert runs.printed("worker_killed", rank=1)[-1].startswith("ldm-vae (process 1): a data worker died")


def test_signal_saves_and_ends_within_a_step(runs: Runs) -> None:
    assert runs.statuses("terminated") == [0]
    assert "checkpoint-000003" in runs.left("terminated")
    assert runs.printed("terminated")[-1].startswith("Stopped by SIGTERM after 3 steps, saved in ")


def test_signal_to_one_rank_stops_all_after_the_same_step(runs: Runs) -> None:
    assert runs.statuses("one_rank_signalled") == [0, 0]
    assert "checkpoint-000004" in runs.left("one_rank_signalled")
    assert runs.printed("one_rank_signalled")[-1].startswith("Stopped by SIGUSR1 after 4 steps, saved in ")


def test_full_disk_stops_with_a_line_and_what_was_saved(runs: Runs) -> None:
    assert runs.statuses("full_disk") == [1, 1]
    *before, last = runs.printed("full_disk")
    assert last.startswith("ldm-vae: ")
    assert "can't be written: File too large" in last
    assert not any("Traceback" in line for line in before)
    assert runs.printed("full_disk", rank=1) == []
    assert [file for file in runs.left("full_disk") if "checkpoint-" in file] == ["checkpoint-000002"]


@pytest.mark.parametrize(("name", "file"), [("flipped", "optimizer.safetensors"), ("truncated", "ema.safetensors")])
def test_damaged_checkpoint_is_named_and_the_one_before_taken(runs: Runs, name: str, file: str) -> None:
    damaged = runs.path(name) / LAST
    printed = runs.printed(f"{name}-resumed")
    assert f"{damaged} is damaged: {file} is not what was written; the one before is taken" in printed
    assert f"Resumed from {runs.path(name) / 'checkpoint-000004'}" in printed
    assert (runs.path(name) / f"{LAST}.damaged").is_dir()  # kept, for whoever wants to know


def test_older_checkpoint_by_name_needs_overwrite(runs: Runs) -> None:
    assert runs.statuses("refused") == [1]
    refused = r"up to checkpoint-000006; give overwrite \(line \d+\) true to have them removed$"
    assert re.search(refused, runs.printed("refused")[-1])
    assert runs.statuses("rewound") == [0]
    assert_bit_equal(runs.path("older"), runs.path("whole-1"))
    assert [line["step"] for line in metrics(runs.path("older"))] == [3, 4, 6, 6]


def test_new_run_into_a_folder_that_holds_one_is_refused(runs: Runs) -> None:
    assert runs.statuses("anew") == [1]
    refused = rf"^ldm-vae: output_dir \(.*\.yaml, line 1\): {runs.path('whole-1')} holds a run; go on with "
    assert re.match(refused, runs.printed("anew")[-1])
    assert sorted(path.name for path in runs.path("whole-1").iterdir()) == runs.left("whole-1")


@pytest.mark.parametrize("name", STREAMS)
def test_streams_run_whatever_the_shards(runs: Runs, name: str) -> None:
    assert runs.statuses(name) == [0, 0, 0]
    assert last_checkpoint(runs.path(name)).name == LAST


def test_files_may_be_read_by_whom_the_umask_lets(runs: Runs) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in last_checkpoint(runs.path("whole-1")).iterdir()}
    assert set(modes.values()) == {0o666 & ~umask()}
    assert load_file(last_checkpoint(runs.path("whole-1")) / "state.safetensors")


def test_stress_script_counts_what_is_bit_equal(tmp_path: Path) -> None:
    printed = tmp_path / "printed.txt"
    script = str(SCRIPTS / "stress_resume.py")
    finish([start_forked(run_script, script, "--kills", "1", output=printed)], folder=tmp_path)
    assert printed.read_text().startswith("1 of 1 bit-equal, with 1 processes\n")


def umask() -> int:
    held = os.umask(0)
    os.umask(held)
    return held
