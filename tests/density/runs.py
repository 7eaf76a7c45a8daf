"""Runs to ask for a density, untrained but for what a test trains itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm_vae.config.commands.density import DensityOptions
from ldm_vae.config.parsing import dump_config
from ldm_vae.density.density import DensitySummary, density
from tests.tiny import tiny_config
from tests.training.checkpoints import plan_of, save_at, trained

LOSS = {"disc_weight": 0.0, "logvar_init": -2.0, "beta": 1.0}


def untrained_run(folder: Path, *, loss: dict[str, Any], **sections: Any) -> Path:
    """Write the folder of a run that has made no update but holds a checkpoint."""
    config = tiny_config(output_dir=folder, loss=LOSS | loss, **sections)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    save_at(trained(config, steps=0)[0], folder, 1, plan=plan_of(config))
    return folder


def measure(vae: Path, data: Path, output: Path, **options: Any) -> DensitySummary:
    """Call the command's function."""
    return density(DensityOptions(vae=str(vae), data=str(data), output=str(output), num_workers=0, **options))
