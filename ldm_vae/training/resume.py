"""Where a run starts: afresh, or from what an earlier one left in its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from ldm_vae.config import Config
from ldm_vae.config_file import dump_config
from ldm_vae.training.checkpoint import checkpoint_step, find_checkpoint, latest_checkpoint, list_checkpoints
from ldm_vae.training.tracking import METRICS, SKIPPED

CONFIG = "config.yaml"
SAMPLES = "samples"
LOGS = "logs"


def prepare_run(run: Path, config: Config) -> Path | None:
    """Make the run's folder, write its config, and return the checkpoint to go on from, if any; on the main process.

    Raises:
        ValueError: where the folder holds a run that the config neither resumes nor overwrites.
    """
    checkpoint = _choose_checkpoint(run, config)
    if checkpoint is None and _holds_run(run):
        _remove_run(run)
    run.mkdir(parents=True, exist_ok=True)
    (run / CONFIG).write_text(dump_config(config))
    return checkpoint


def _choose_checkpoint(run: Path, config: Config) -> Path | None:
    name = config.train.resume_from_checkpoint
    if name is None:
        if _holds_run(run) and not config.overwrite:
            raise ValueError(
                f"output_dir: {run} holds a run; go on with --train.resume_from_checkpoint latest, or start anew with "
                f"--overwrite true"
            )
        return None
    if name == "latest":
        checkpoint = latest_checkpoint(run, report=lambda line: print(f"{line}; passed over"))
        if checkpoint is None:
            print(f"{run} holds no checkpoint yet: starting afresh")
        return checkpoint
    checkpoint = find_checkpoint(run, name)
    newer = [other for other in list_checkpoints(run) if checkpoint_step(other) > checkpoint_step(checkpoint)]
    if newer and not config.overwrite:
        raise ValueError(
            f"train.resume_from_checkpoint: {run} holds checkpoints after {checkpoint.name}, up to {newer[-1].name}; "
            f"give --overwrite true to have them removed"
        )
    for other in newer:
        shutil.rmtree(other)
    return checkpoint


def _holds_run(run: Path) -> bool:
    return (run / CONFIG).exists() or (run / METRICS).exists() or bool(list_checkpoints(run))


def _remove_run(run: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for path in [*list_checkpoints(run), *run.glob(".checkpoint-*"), run / SAMPLES, run / LOGS, run / "ldm-vae"]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (METRICS, SKIPPED, CONFIG):
        (run / name).unlink(missing_ok=True)
