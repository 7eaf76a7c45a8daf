"""A run's autoencoder, for export and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldm_vae.config.parsing import load_config
from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.models.families import family_class
from ldm_vae.models.families.family import Family
from ldm_vae.models.layouts.folder import checked_state_dict, read_config
from ldm_vae.training import checkpoint_files as files
from ldm_vae.training.checkpoint_files import CheckpointError, find_checkpoint, read_record, read_scalars, read_tensors
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.state import BestValidation


@dataclass(frozen=True, kw_only=True)
class RunAutoencoder:
    """The autoencoder of a checkpoint, with where it came from."""

    family: Family
    """The autoencoder, in float32 and in eval mode."""
    config: Config
    """The settings that the run had when the checkpoint was saved, those of its stage."""
    step: int
    checkpoint: Path
    best: BestValidation | None
    likelihood_logvar: float
    """The log-variance s of the likelihood, as it was last; the average of weights has none of its own."""


def load_run_autoencoder(run: Path, *, checkpoint: str, weights: Literal["ema", "raw"]) -> RunAutoencoder:
    """Load the autoencoder of a run's checkpoint.

    Args:
        run: Folder of the run.
        checkpoint: `latest`, `best` or a name.
        weights: `ema` for the averaged weights, where the run keeps them; `raw` for the last ones.

    Raises:
        ValueError: There is no run, or no whole checkpoint of that name.
    """
    require(RunFolder(run).config.is_file(), f"<run>: {run} is no run: it has no config.yaml")
    folder = find_checkpoint(RunFolder(run), checkpoint)
    record = read_record(folder)
    logvar = read_scalars(folder)["likelihood_logvar"].item()
    tensors = read_tensors(folder, files.AUTOENCODER if weights == "raw" or record.ema_step is None else files.EMA)
    try:
        fields = read_config(folder / files.ARCHITECTURE)
        family = family_class(fields.get("_class_name"))
    except ValueError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    try:
        tensors = checked_state_dict(tensors, family=family, config=fields)
    except ValueError as error:
        raise CheckpointError(f"{folder} is damaged: weights and architecture don't fit: {error}") from None
    built = family.from_config(fields)
    built.model.load_state_dict(tensors)
    return RunAutoencoder(
        family=built.eval(),
        config=load_config(folder / files.CONFIG).row[record.stage],
        step=record.step,
        checkpoint=folder,
        best=record.best,
        likelihood_logvar=logvar,
    )
