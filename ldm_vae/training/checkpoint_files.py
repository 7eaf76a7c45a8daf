"""The files of a checkpoint: a manifest of their digests, a record of the numbers, and which checkpoints are whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm_vae.system.files import sha256_file
from ldm_vae.system.paths import OutsideFolder, inside
from ldm_vae.system.text import first_line
from ldm_vae.training.data_names import DataNames
from ldm_vae.training.run_folder import (
    RunFolder,
    checkpoint_name,
    checkpoint_step,
    is_checkpoint_name,
    remove_checkpoint,
)
from ldm_vae.training.state import BestValidation

MANIFEST = "manifest.json"
RECORD = "state.json"
CONFIG = "config.yaml"
ARCHITECTURE = "autoencoder_config.json"
AUTOENCODER = "autoencoder.safetensors"
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"
DISCRIMINATOR = "discriminator.safetensors"
DISCRIMINATOR_OPTIMIZER = "discriminator_optimizer.safetensors"
SCALARS = "state.safetensors"
TERMS = "terms.safetensors"
ALWAYS = (RECORD, CONFIG, ARCHITECTURE, AUTOENCODER, OPTIMIZER, SCALARS)
SOMETIMES = (EMA, TERMS, DISCRIMINATOR, DISCRIMINATOR_OPTIMIZER)


class CheckpointError(ValueError):
    """A checkpoint is missing, not whole, or not what its name says."""


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What a checkpoint holds beside tensors."""

    step: int
    """Number of updates made."""
    ema_step: int | None
    """Number of updates of the averaged weights; None where the run keeps no average."""
    best: BestValidation | None
    """The best validation so far."""
    lr_scheduler_steps: dict[str, int]
    """Number of steps of each network's learning-rate schedule."""
    learning_rates: dict[str, float]
    """Learning rates of the last update, by name."""
    early_stages: list[tuple[int, int]]
    """Early stages as (update, resolution): the side that images have before the update."""
    data: DataNames
    """The training images' names."""
    stage: int = 0
    """The run's stage, from 0, that the step belongs to."""
    stage_start: int = 0
    """Updates of the run before that stage."""
    disc_start: int | None = None
    """The stage's updates before the discriminator is trained; None in checkpoints of versions that didn't keep it."""

    def to_json(self) -> str:
        """Return the record as the text of its file."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)


def read_record(checkpoint: Path) -> CheckpointRecord:
    """Read a checkpoint's record.

    Raises:
        CheckpointError: The record can't be read, or is of another version.
    """
    try:
        fields = json.loads((checkpoint / RECORD).read_text())
        record = CheckpointRecord(
            **fields
            | {
                "best": None if fields["best"] is None else BestValidation(**fields["best"]),
                "early_stages": [(int(update), int(side)) for update, side in fields["early_stages"]],
                "data": DataNames(**fields["data"]),
            }
        )
    except (OSError, ValueError, TypeError, KeyError):
        raise CheckpointError(f"{checkpoint} is damaged: {RECORD} can't be read, or is not of this version") from None
    whole = (record.step, record.stage, record.stage_start)
    if not (all(isinstance(number, int) for number in whole) and isinstance(record.lr_scheduler_steps, dict)):
        raise CheckpointError(f"{checkpoint} is damaged: {RECORD} holds no step or no schedules")
    return record


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Read a checkpoint's file of tensors.

    Raises:
        CheckpointError: The file can't be read.
    """
    try:
        return load_file(checkpoint / name)
    except (OSError, SafetensorError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{checkpoint} is damaged: {name} can't be read ({reason})") from None


def read_scalars(checkpoint: Path) -> dict[str, Tensor]:
    """Read a checkpoint's numbers and sums.

    Raises:
        CheckpointError: The file can't be read, or lam or the likelihood's log-variance is no number.
    """
    scalars = read_tensors(checkpoint, SCALARS)
    for name in ("lam", "likelihood_logvar"):
        if name not in scalars or scalars[name].numel() != 1:
            raise CheckpointError(f"{checkpoint} is damaged: {SCALARS} holds no number {name}")
    return scalars


# Whether a checkpoint is whole


def write_manifest(folder: Path) -> None:
    """Write the sizes and digests of a folder's files beside them."""
    manifest = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def check_whole(checkpoint: Path) -> None:
    """Check that a checkpoint is what was written, and of the step in its name.

    Every file that loading reads must have the size and digest that the manifest states.

    Raises:
        CheckpointError: The checkpoint is damaged. The message names the file.
    """
    manifest = _read_manifest(checkpoint)
    missing = [name for name in ALWAYS if name not in manifest]
    missing += [name for name in SOMETIMES if name not in manifest and (checkpoint / name).exists()]
    if missing:
        raise CheckpointError(f"{checkpoint} is damaged: {MANIFEST} says nothing of {missing[0]}")
    for name, expected in manifest.items():
        try:
            path = inside(checkpoint, name, source=MANIFEST)
        except OutsideFolder as error:
            raise CheckpointError(f"{checkpoint} is damaged: {error}") from None
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} is damaged: {name} is missing")
        if path.stat().st_size != expected["size"] or _digest(path) != expected:
            raise CheckpointError(f"{checkpoint} is damaged: {name} is not what was written")
    step = read_record(checkpoint).step
    if step != checkpoint_step(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is not what its name says: it was saved after {step} updates; it may be a renamed copy of "
            f"{checkpoint_name(step)}"
        )


def _read_manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 by file name."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{checkpoint} is damaged: {MANIFEST} can't be read") from None
    entries = manifest.values() if isinstance(manifest, dict) else []
    if not entries or not all(isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in entries):
        raise CheckpointError(f"{checkpoint} is damaged: {MANIFEST} is no list of files, sizes and digests")
    return manifest


def _digest(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


# Which of a run's checkpoints to take, and to keep


def latest_checkpoint(run: RunFolder, *, report: Callable[[str], None] = lambda line: None) -> Path | None:
    """Return the newest whole checkpoint, or None where the run has no checkpoint.

    Args:
        run: The run.
        report: Called with a line for each newer checkpoint that is damaged.

    Raises:
        CheckpointError: All of the run's checkpoints are damaged.
    """
    checkpoints = run.checkpoints()
    for checkpoint in reversed(checkpoints):
        try:
            check_whole(checkpoint)
        except CheckpointError as error:
            report(str(error))
        else:
            return checkpoint
    if checkpoints:
        raise CheckpointError(f"{run.path}: none of its {len(checkpoints)} checkpoints is whole")
    return None


def find_checkpoint(run: RunFolder, name: str) -> Path:
    """Return the checkpoint called `latest` (the newest whole one), `best` (by validation) or by its name.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
    """
    if name in ("latest", "best"):
        latest = latest_checkpoint(run)
        if latest is None:
            raise CheckpointError(f"{run.path} holds no checkpoint")
        if name == "latest":
            return latest
        best = read_record(latest).best
        if best is None:
            raise CheckpointError(f"{run.path} was not validated, so it has no best checkpoint; take 'latest'")
        name = checkpoint_name(best.step)
    if not (is_checkpoint_name(name) and (run.path / name).is_dir()):
        known = ", ".join(path.name for path in run.checkpoints()) or "none"
        raise CheckpointError(f"{run.path} holds no checkpoint '{name}'; it holds {known}")
    check_whole(run.path / name)
    return run.path / name


def remove_old_checkpoints(run: RunFolder, *, step: int, limit: int | None, best: BestValidation | None) -> None:
    """Keep the newest `limit` checkpoints and the best one; called after the checkpoint of `step` was written.

    That checkpoint stays in any case, since it is known to be whole. Checkpoints of later steps don't count.
    """
    kept = checkpoint_name(best.step) if best is not None else None
    checkpoints = [checkpoint for checkpoint in run.checkpoints() if checkpoint_step(checkpoint) <= step]
    for checkpoint in checkpoints[: -limit if limit else 0]:
        if checkpoint.name != kept:
            remove_checkpoint(checkpoint)
