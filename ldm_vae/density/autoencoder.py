"""Which autoencoder a density is asked of, and the likelihood that it was trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ldm_vae.config.commands.density import DensityOptions
from ldm_vae.config.rules import FieldError, require
from ldm_vae.losses.likelihood import LikelihoodKind
from ldm_vae.models.families.family import Family
from ldm_vae.models.load import load_vae
from ldm_vae.system.output_kinds import RUN, is_marked
from ldm_vae.training.likelihood import LikelihoodRecord
from ldm_vae.training.run_autoencoder import load_run_autoencoder

_MEASUREMENTS = "measurements.json"


@dataclass(frozen=True, kw_only=True)
class DensityModel:
    """An autoencoder that gives a density."""

    family: Family
    record: LikelihoodRecord
    which: dict[str, Any]
    """What of the source was taken: of a run the checkpoint, its step, and which weights."""

    @property
    def kind(self) -> LikelihoodKind:
        """The distribution of pictures about their reconstruction."""
        return cast(LikelihoodKind, self.record.kind)


def load_density_model(options: DensityOptions) -> DensityModel:
    """Load a run's or an export's autoencoder, where it gives a density.

    Raises:
        ValueError: In one line: it is neither, or it gives none, with the reason.
    """
    source = Path(options.vae)
    which: dict[str, Any] = {}
    if is_marked(source, RUN):
        run = load_run_autoencoder(source, checkpoint=options.checkpoint, weights=options.weights)
        record, family = LikelihoodRecord.of(run), run.family
        averaged = options.weights == "ema" and run.config.train.ema_decay > 0
        which = {"checkpoint": run.checkpoint.name, "step": run.step, "weights": "ema" if averaged else "raw"}
    else:
        record = _stated(source)
        of_runs = ("checkpoint", "weights")
        chosen = [name for name in of_runs if getattr(options, name) != getattr(DensityOptions, name)]
        require(not chosen, f"<{chosen[0] if chosen else ''}> is of runs; the export {source} holds one autoencoder")
        family = load_vae(source, needs_scaling=False).family
    require(
        family.bottleneck.has_posterior,
        f"<vae> {source} gives no density: a {family.bottleneck.name} bottleneck has no posterior to bound one by",
    )
    require(record.obstacle is None, f"<vae> {source} gives no density: {record.obstacle}")
    return DensityModel(family=family, record=record, which=which)


def _stated(source: Path) -> LikelihoodRecord:
    """Return what an export says of its likelihood."""
    try:
        fields = json.loads((source / _MEASUREMENTS).read_text(encoding="utf-8"))["likelihood"]
        return LikelihoodRecord.read(fields)
    except (OSError, ValueError, KeyError, TypeError):
        raise FieldError(
            f"<vae> {source} is neither a run nor an export whose {_MEASUREMENTS} says which likelihood it was "
            f"trained with; name the folder of the run"
        ) from None
