"""The stages of a run: parts that follow one another, with settings of their own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ldm_vae.config.rules import Options, require

_SHARED = (
    *("output_dir", "overwrite", "seed", "report_to", "model.", "data."),
    *("train.batch_size", "train.resume_from_checkpoint", "train.deterministic", "train.timeout_minutes"),
    *("loss.discriminator", "loss.discriminator_weights"),
    *("loss.disc_norm", "loss.disc_channels", "loss.disc_num_layers"),
    *("loss.alignment", "loss.alignment_weights"),
)
"""What all stages of a run have alike: fields, and sections with a dot."""
_OWN = (
    "model.decoder_only",
    *("data.resolution", "data.early_resolutions", "data.early_fractions", "data.num_workers"),
    *("data.crop", "data.crop_min_area", "data.flip", "data.validation_images", "data.whole_validation"),
)
"""Fields of those sections that a stage may have of its own, as it may all other fields."""


def check_stage(stage: Options, *, run: Options, number: int) -> None:
    """Raise `FieldError` where a stage changes what the stages of a run share.

    Args:
        stage: All settings of the stage.
        run: The settings that the run has without stages.
        number: The stage's number, from 1.
    """
    others = flat_settings(run)
    for name, value in flat_settings(stage).items():
        left_out = name == "loss.alignment" and value == "none"  # the projection is one network in all stages
        shared = name in _SHARED or (f"{name.partition('.')[0]}." in _SHARED and name not in _OWN)
        require(
            not shared or left_out or value == others[name],
            f"stage {number} changes <{name}>, which all stages of a run share; give it for the whole run",
        )


def flat_settings(settings: Options) -> dict[str, Any]:
    """Return settings by dotted name, those of stages left out; a weight that is a ramp is one value."""
    flat: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        if name == "stages":
            continue
        section = getattr(settings, name)
        if isinstance(section, Options):
            flat |= {f"{name}.{field}": part for field, part in value.items()}
        else:
            flat[name] = value
    return flat


def own_settings(stage: Options, *, run: Options) -> dict[str, Any]:
    """Return what a stage has of its own, by section."""
    others, own = flat_settings(run), dict[str, Any]()
    for name, value in flat_settings(stage).items():
        if value != others[name]:
            section, _, field = name.rpartition(".")
            own.setdefault(section, {})[field] = value
    return own
