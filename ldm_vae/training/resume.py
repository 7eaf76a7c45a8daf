"""Where a run starts: afresh, or from what an earlier one left in its folder."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from ldm_vae.config.parsing import dump_config, load_config
from ldm_vae.config.run import Config
from ldm_vae.system.files import remove_temporaries, write_whole
from ldm_vae.training.checkpoint import (
    CHECKPOINT,
    checkpoint_step,
    find_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    remove_checkpoint,
)
from ldm_vae.training.tracking import LOGS, METRICS, SAMPLES, SKIPPED, flatten, rewind

CONFIG = "config.yaml"


def choose_checkpoint(run: Path, config: Config) -> Path | None:
    """The checkpoint that the run goes on from, or none; nothing is changed. Called by the main process.

    Raises:
        ValueError: where the folder holds a run that the config neither resumes nor overwrites, or the checkpoint that
            it names is missing or damaged.
    """
    name = config.train.resume_from_checkpoint
    if name is None:
        if _holds_run(run) and not config.overwrite:
            raise ValueError(
                f"output_dir: {run} holds a run; go on with --train.resume_from_checkpoint latest, or start anew with "
                f"--overwrite true"
            )
        return None
    if name == "latest":
        checkpoint = latest_checkpoint(run, report=lambda line: print(f"{line}; the one before is taken"))
        if checkpoint is None:
            print(f"{run} holds no checkpoint yet: starting afresh")
        return checkpoint
    checkpoint = find_checkpoint(run, name)
    newer = _later(run, checkpoint)
    if newer and not config.overwrite:
        raise ValueError(
            f"train.resume_from_checkpoint: {run} holds checkpoints after {checkpoint.name}, up to {newer[-1].name}; "
            f"give --overwrite true to have them removed"
        )
    return checkpoint


def begin_run(run: Path, config: Config, *, checkpoint: Path | None) -> None:
    """Make the run's folder what it was at `checkpoint` (none: empty) and write its config. Called by the main process
    once the checkpoint is loaded, so that one that can't be leaves everything as it is."""
    run.mkdir(parents=True, exist_ok=True)
    for path in run.glob(f".{CHECKPOINT}*"):  # writes and removals that were interrupted
        shutil.rmtree(path)
    remove_temporaries(run, older_than=3600)
    if checkpoint is None:
        _remove_run(run)
    else:
        for other in _later(run, checkpoint):
            if config.train.resume_from_checkpoint == "latest":  # damaged, or it would be the latest
                aside = other.with_name(f"{other.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                other.rename(aside)
            else:
                remove_checkpoint(other)
        rewind(run, step=checkpoint_step(checkpoint))
        for line in _changes(run, config):
            print(line)
    write_whole(run / CONFIG, dump_config(config).encode())


def _changes(run: Path, config: Config) -> list[str]:
    """A line for each setting that is not the one the run had so far."""
    try:
        before = flatten(asdict(load_config(run / CONFIG)))
    except ValueError:  # written by another version
        return []
    now = flatten(asdict(config))
    apart = ("output_dir", "overwrite", "train.resume_from_checkpoint")
    return [
        f"{name} is {now[name]} now, after {before[name]}"
        for name in now
        if before[name] != now[name] and name not in apart
    ]


def _later(run: Path, checkpoint: Path) -> list[Path]:
    return [other for other in list_checkpoints(run) if checkpoint_step(other) > checkpoint_step(checkpoint)]


def _holds_run(run: Path) -> bool:
    return (run / CONFIG).exists() or (run / METRICS).exists() or bool(list_checkpoints(run))


def _remove_run(run: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for path in [*list_checkpoints(run), *run.glob(f"{CHECKPOINT}*.damaged"), run / SAMPLES, run / LOGS]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (METRICS, SKIPPED, CONFIG):
        (run / name).unlink(missing_ok=True)
