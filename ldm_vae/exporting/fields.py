"""Fields of an export's config.json that are measured or decided, not inherited."""

from __future__ import annotations

import json
from typing import Any

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.metrics.latents import LatentSummary
from ldm_vae.models.families.family import Family
from ldm_vae.training.run_autoencoder import RunAutoencoder

NEEDS_SHIFT = ("sd3", "flux")
"""Targets whose pipelines crash without a number."""
_SMALLEST_TILE = 512
_UNSTATED_SAMPLE_SIZE = 32  # the class's default


def config_of(exported: Family) -> dict[str, Any]:
    """Return a model's config as config.json has it."""
    config: dict[str, Any] = json.loads(exported.model.to_json_string())
    return {name: value for name, value in config.items() if name not in exported.derived_fields}


def scaling_fields(options: ExportOptions, *, latents: LatentSummary) -> dict[str, Any]:
    """The config fields that tell pipelines how to normalise latents, all of them, so that none is inherited."""
    fields: dict[str, Any] = {"scaling_factor": latents.scaling_factor, "shift_factor": None}
    fields |= {"latents_mean": None, "latents_std": None}
    if options.per_channel:
        # (z - mean) * scaling_factor / std, in SDXL's pipelines
        return fields | {
            "scaling_factor": 1.0, "latents_mean": latents.channel_mean, "latents_std": latents.channel_std
        }  # fmt: skip
    if options.shift or options.target in NEEDS_SHIFT:
        fields["shift_factor"] = latents.mean
    return fields


def taught_fields(run: RunAutoencoder) -> dict[str, Any]:
    """Of a model that learnt a teacher's normalised latents: there is nothing left to normalise."""
    return {} if run.config.model.teacher is None else {"scaling_factor": 1.0, "shift_factor": 0.0}


def tile_size(run: RunAutoencoder) -> int:
    """Return the config's `sample_size`: the side in pixels of the tiles that diffusers' `enable_tiling` cuts.

    A tile has less around it than a whole picture, which shows at the seams, so tiles aren't as small as the crops of
    a training may be. A pretrained model's size stays, unless it is the class's default, which nobody chose.
    """
    stated = run.family.model.config.get("sample_size")
    if run.config.model.pretrained is not None and stated not in (None, _UNSTATED_SAMPLE_SIZE):
        return stated
    return max(_SMALLEST_TILE, *(side for size in run.config.data.sizes for side in size))
