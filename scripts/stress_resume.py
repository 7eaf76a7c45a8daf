"""Kills training runs at random moments, lets them go on, and compares each with a run that was never touched.

    python scripts/stress_resume.py --kills 50 --num_processes 2

Each run is one of a tiny autoencoder with GAN, learnt log-variance, averaged weights and validation, which saves at
every second step. Its processes get SIGKILL at a random moment: all of them, or one, whose end the others must see by
themselves. It is then started again with `resume_from_checkpoint: latest`, and in one case of three killed again.
"Bit-equal" means that every file of every checkpoint (but for its config) and every line of metrics.jsonl (but for
images_per_second) is the untouched run's. The processes are real ones; they are forked from this one, which has
imported everything, since importing takes longer than such a run.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
from PIL import Image

from ldm_vae.config.data import DataConfig
from ldm_vae.config.loss import LossConfig
from ldm_vae.config.model import ModelConfig
from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from ldm_vae.training.loop import train
from ldm_vae.training.run_folder import RunFolder

STEPS = 20
RESERVED: list[socket.socket] = []
HANG_SECONDS = 240  # more than five times the timeout, which gloo gives a process that is still to connect


def make_config(run: Path, pictures: Path, *, num_workers: int) -> Config:
    """A run of a few thousand weights: all that a run can have, and a checkpoint at every second step."""
    return Config(
        output_dir=str(run),
        report_to="none",
        model=ModelConfig(block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4),
        data=DataConfig(train=str(pictures), validation=str(pictures), resolution=32, num_workers=num_workers),
        loss=LossConfig(perceptual="none", learn_logvar=True, disc_start=2, disc_channels=8, disc_num_layers=2),
        train=TrainConfig(
            batch_size=6,
            max_train_steps=STEPS,
            learning_rate=1e-3,
            lr_scheduler="cosine",
            lr_warmup_steps=2,
            mixed_precision="no",
            ema_decay=0.9,
            log_steps=7,
            validation_steps=8,
            checkpointing_steps=2,
            checkpoints_total_limit=None,
            timeout_minutes=0.25,  # a launcher ends all processes with one; here they find out by themselves
            resume_from_checkpoint="latest",
        ),
    )


def make_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(11):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((40 + 3 * index, 48), Image.Resampling.BICUBIC).save(folder / f"{index}.png")


# Processes


def reserve_port() -> int:
    """Return a port that no other process is given: it stays bound here, where torch's store may bind it beside."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    RESERVED.append(reserved)
    port: int = reserved.getsockname()[1]
    return port


def start(config: Config, *, num_processes: int) -> list[int]:
    """Fork the processes of a launch; what they print goes to printed-RANK.txt beside the run."""
    children, port = [], reserve_port() if num_processes > 1 else 0
    for rank in range(num_processes):
        child = os.fork()
        if child == 0:
            printed = os.open(f"{config.output_dir}-printed-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            if num_processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            status = 1
            with contextlib.suppress(Exception, SystemExit):
                train(config)
                status = 0
            os._exit(status)
        children.append(child)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit statuses; a run that hangs is killed, and is an error."""
    statuses: dict[int, int] = {}
    until = time.monotonic() + HANG_SECONDS
    while len(statuses) < len(children):
        for child in set(children) - statuses.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                statuses[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    if time.monotonic() > until:
        raise RuntimeError(f"processes hung for {HANG_SECONDS} s: statuses {[statuses[child] for child in children]}")
    return [statuses[child] for child in children]


# Killing


@dataclass
class Tally:
    """What the kills hit."""

    seconds: float  # that a whole run takes, as last seen
    kills: int = 0
    one_rank: int = 0
    in_a_write: int = 0
    before_any_checkpoint: int = 0
    differing: list[str] = field(default_factory=list)


def kill_once(config: Config, *, num_processes: int, rng: random.Random, tally: Tally) -> bool:
    """Start a run, or go on with it, and kill it at a random moment; false if it ended before."""
    run = Path(config.output_dir)
    is_new = not run.exists()
    children = start(config, num_processes=num_processes)
    began = time.monotonic()
    moment = rng.uniform(0, tally.seconds)
    while time.monotonic() - began < moment and any(map(lives, children)):
        time.sleep(0.002)
    if is_new and not any(map(lives, children)):
        tally.seconds = time.monotonic() - began
    victims = children if num_processes == 1 or rng.random() < 0.5 else [rng.choice(children)]
    for child in victims:
        os.kill(child, signal.SIGKILL)  # ours, and not yet waited for, so its number can't be another's
    if -signal.SIGKILL not in wait(children):
        return False
    tally.kills += 1
    tally.one_rank += len(victims) < len(children)
    tally.in_a_write += any(run.glob(".checkpoint*"))
    tally.before_any_checkpoint += not RunFolder(run).checkpoints()
    return True


def lives(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def interrupt(config: Config, *, num_processes: int, rng: random.Random, tally: Tally) -> None:
    """Have a run killed at least once, and end."""
    run = Path(config.output_dir)
    while not kill_once(config, num_processes=num_processes, rng=rng, tally=tally):
        shutil.rmtree(run)
    while rng.random() < 1 / 3:
        kill_once(config, num_processes=num_processes, rng=rng, tally=tally)
    statuses = wait(start(config, num_processes=num_processes))
    if any(statuses):
        printed = Path(f"{run}-printed-0.txt").read_text()
        raise RuntimeError(f"{run} did not end after it was killed (statuses {statuses}): {printed[-2000:]}")


def differences(run: Path, expected: Path) -> list[str]:
    """What differs between two finished runs: files of checkpoints, lines of metrics, names."""
    found = []
    names, others = (sorted(path.name for path in folder.iterdir()) for folder in (run, expected))
    if names != others:
        found.append(f"files {sorted(set(names) ^ set(others))}")
    for checkpoint in RunFolder(expected).checkpoints():
        for path in sorted(checkpoint.iterdir()):
            if path.name in ("config.yaml", "manifest.json"):  # which name the run's folder
                continue
            other = run / checkpoint.name / path.name
            if not other.is_file() or other.read_bytes() != path.read_bytes():
                found.append(f"{checkpoint.name}/{path.name}")
    if metrics(run) != metrics(expected):
        found.append("metrics.jsonl")
    return found


def metrics(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="interrupted runs, each killed at least once")
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--num_workers", type=int, default=0, help="data workers of each process")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    gc.collect()
    gc.freeze()  # the children then needn't copy what they don't change
    with tempfile.TemporaryDirectory() as folder:
        pictures, untouched = Path(folder) / "pictures", Path(folder) / "untouched"
        make_pictures(pictures)
        began = time.monotonic()
        config = make_config(untouched, pictures, num_workers=options.num_workers)
        if any(wait(start(config, num_processes=options.num_processes))):
            sys.exit(Path(f"{untouched}-printed-0.txt").read_text())
        tally = Tally(seconds=time.monotonic() - began)
        for number in range(1, options.kills + 1):
            run = Path(folder) / f"run-{number}"
            config = make_config(run, pictures, num_workers=options.num_workers)
            interrupt(config, num_processes=options.num_processes, rng=rng, tally=tally)
            found = differences(run, untouched)
            if found:
                tally.differing.append(run.name)
                print(f"{run.name} differs in {len(found)} files, the first {found[0]}", flush=True)
            shutil.rmtree(run)
            if sys.stderr.isatty():
                print(f"\r{number} of {options.kills}", end="", file=sys.stderr)
    equal = options.kills - len(tally.differing)
    print(f"{equal} of {options.kills} bit-equal, with {options.num_processes} processes")
    print(
        f"{tally.kills} kills: {tally.in_a_write} inside a checkpoint's write, {tally.before_any_checkpoint} before "
        f"the first checkpoint, {tally.one_rank} of one process alone"
    )
    sys.exit(bool(tally.differing))


if __name__ == "__main__":
    main()
