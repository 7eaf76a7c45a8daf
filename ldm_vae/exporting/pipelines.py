"""Whether a VAE folder and a pipeline folder of diffusers fit, judged by their configs: no weights are read.

What a pipeline does with the encoder's z, as read in diffusers 0.42 and tested against its classes: Stable Diffusion,
DiT and LDM z * scaling_factor; SD3 and FLUX (z - shift_factor) * scaling_factor; SDXL (z - latents_mean) *
scaling_factor / latents_std where both are set, for four channels only, else z * scaling_factor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ldm_vae.config.commands.pipeline_check import PipelineCheckOptions
from ldm_vae.config.rules import FieldError, mark, within
from ldm_vae.models.families import family_from_config
from ldm_vae.models.families.wrapped import ENCODER_IS_TRAINED
from ldm_vae.models.layouts.ldm import check_fields, full_config


@dataclass(frozen=True, kw_only=True)
class _Pipeline:
    """What a pipeline class asks of its VAE."""

    latents: Literal["plain", "inpaint", "packed"] = "plain"
    """How latents enter the denoiser: as they are, beside a mask and a masked image, or in 2x2 patches (FLUX)."""
    reads_shift: bool = False
    reads_statistics: bool = False
    encodes: bool = False
    vae: str = "vae"


_PIPELINES = {
    "StableDiffusionPipeline": _Pipeline(),
    "StableDiffusionImg2ImgPipeline": _Pipeline(encodes=True),
    "StableDiffusionInpaintPipeline": _Pipeline(encodes=True, latents="inpaint"),
    "StableDiffusionXLPipeline": _Pipeline(reads_statistics=True),
    "StableDiffusionXLImg2ImgPipeline": _Pipeline(reads_statistics=True, encodes=True),
    "StableDiffusionXLInpaintPipeline": _Pipeline(reads_statistics=True, encodes=True, latents="inpaint"),
    "StableDiffusion3Pipeline": _Pipeline(reads_shift=True),
    "StableDiffusion3Img2ImgPipeline": _Pipeline(reads_shift=True, encodes=True),
    "FluxPipeline": _Pipeline(reads_shift=True, latents="packed"),
    "FluxImg2ImgPipeline": _Pipeline(reads_shift=True, encodes=True, latents="packed"),
    "DiTPipeline": _Pipeline(),
    "LDMPipeline": _Pipeline(vae="vqvae"),
}
_SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


@dataclass(frozen=True)
class Misfit:
    """A field of the VAE's config.json that the pipeline can't work with, and why."""

    field: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PipelineCheck:
    """Whether a VAE and a pipeline fit; `str()` says it in lines."""

    vae: Path
    pipeline: Path
    pipeline_class: str
    misfits: list[Misfit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What works but may surprise: numbers that are ignored, or differ from those of the pipeline's own VAE."""

    @property
    def fits(self) -> bool:
        """Whether the pipeline runs with this VAE and reads its latents rightly."""
        return not self.misfits

    @property
    def problem(self) -> str | None:
        """Why the command ends with a status other than 0."""
        return None if self.fits else f"{self.vae} does not fit {self.pipeline}"

    def __str__(self) -> str:
        """Return the verdict with its reasons and notes, a line each."""
        verdict = "fits" if self.fits else "does not fit"
        lines = [f"{self.vae} {verdict} {self.pipeline_class} in {self.pipeline}"]
        lines += [f"{misfit.field}: {misfit.reason}" for misfit in self.misfits]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def check_pipeline(options: PipelineCheckOptions) -> PipelineCheck:
    """Do what `ldm-vae pipeline-check` does; see `pipeline_check`."""
    return pipeline_check(options.vae, options.pipeline)


def pipeline_check(vae: str | Path, pipeline: str | Path) -> PipelineCheck:
    """Check a VAE's folder against a pipeline's folder, by their configs.

    Raises:
        ValueError: Either folder is not of that kind, or the pipeline is of a class that isn't known here.
    """
    vae, pipeline = Path(vae), Path(pipeline)
    stated = _read(vae / "config.json", field="vae")
    check_fields({"_class_name": stated.get("_class_name")})
    config = full_config(stated)
    index = _read(pipeline / "model_index.json", field="pipeline")
    name = str(index.get("_class_name"))
    if name not in _PIPELINES:
        raise FieldError(f"<pipeline>: {pipeline} is a {name}; those that can be checked are {', '.join(_PIPELINES)}")
    kind = _PIPELINES[name]
    denoiser = "transformer" if "transformer" in index else "unet"
    in_channels = _read(pipeline / denoiser / "config.json", field="pipeline")["in_channels"]
    own = pipeline / kind.vae / "config.json"
    own_config = full_config(_read(own, field="pipeline")) if own.is_file() else None
    return PipelineCheck(
        vae=vae,
        pipeline=pipeline,
        pipeline_class=name,
        misfits=[
            *_latents_misfits(config, kind=kind, denoiser=denoiser, in_channels=in_channels),
            *_scaling_misfits(config, kind=kind, name=name),
            *_picture_misfits(config, kind=kind, own=own_config),
        ],
        notes=_notes(config, kind=kind, name=name, own=own_config),
    )


def _latents_misfits(config: dict[str, Any], *, kind: _Pipeline, denoiser: str, in_channels: int) -> list[Misfit]:
    channels = config["latent_channels"]
    expected = {"plain": (channels,), "packed": (4 * channels,), "inpaint": (channels, 2 * channels + 1)}[kind.latents]
    if kind.latents == "inpaint" and in_channels not in (4, 9):
        return [Misfit("latent_channels", f"the inpainting pipeline takes a {denoiser} of 4 or 9 channels alone, so a "
                                          f"VAE of 4; this {denoiser} has {in_channels}")]  # fmt: skip
    if kind.encodes and kind.reads_shift and channels == 3:
        return [Misfit("latent_channels", "is 3, and the pipeline takes a picture of 3 channels for latents")]
    if in_channels in expected:
        return []
    how = {"plain": "", "packed": ", four for each of the latent's (2x2 patches)",
           "inpaint": ", which hold the latent's, or the latent's twice and a mask"}[kind.latents]  # fmt: skip
    return [Misfit("latent_channels", f"is {channels}, but the {denoiser} takes {in_channels} channels{how}")]


def _scaling_misfits(config: dict[str, Any], *, kind: _Pipeline, name: str) -> list[Misfit]:
    misfits = []
    if kind.reads_shift and config["shift_factor"] is None:
        misfits.append(Misfit("shift_factor", f"is null, and {name} subtracts it; write 0.0 where there is no shift"))
    if not kind.reads_statistics:
        return misfits
    for statistic in ("latents_mean", "latents_std"):
        values = config[statistic]
        if values is not None and len(values) != 4:
            misfits.append(Misfit(statistic, f"has {len(values)} values, and {name} takes 4 alone"))
    if (config["latents_mean"] is None) != (config["latents_std"] is None):
        misfits.append(Misfit("latents_mean", f"and latents_std go together: {name} ignores one without the other"))
    if kind.latents == "inpaint" and config["latents_mean"] is not None:
        misfits.append(Misfit("latents_mean", f"is used by {name} to decode but not to encode; take scaling_factor"))
    return misfits


def _picture_misfits(config: dict[str, Any], *, kind: _Pipeline, own: dict[str, Any] | None) -> list[Misfit]:
    misfits = []
    if kind.encodes and config["in_channels"] != 3:
        misfits.append(Misfit("in_channels", f"is {config['in_channels']}, and the pipeline encodes pictures of 3"))
    if kind.encodes and config.get(ENCODER_IS_TRAINED) is False:
        misfits.append(Misfit(ENCODER_IS_TRAINED, "is false, and the pipeline encodes pictures"))
    if own is not None and _spatial_factor(own) != _spatial_factor(config):
        reason = (
            f"gives a spatial factor of {_spatial_factor(config)}, and the pipeline's own VAE {_spatial_factor(own)}"
        )
        misfits.append(Misfit("block_out_channels", reason))
    return misfits


def _notes(config: dict[str, Any], *, kind: _Pipeline, name: str, own: dict[str, Any] | None) -> list[str]:
    notes = []
    if config["shift_factor"] and not kind.reads_shift:
        notes.append(f"shift_factor {config['shift_factor']} is ignored by {name}")
    if config["latents_mean"] is not None and not kind.reads_statistics:
        notes.append(f"latents_mean and latents_std are ignored by {name}")
    if config["out_channels"] != 3:
        notes.append(f"pictures come out with {config['out_channels']} channels")
    if own is None:
        notes.append("the pipeline has no VAE of its own, so its spatial factor and scaling can't be compared")
        return notes
    for number in _SCALING:
        if config[number] != own[number]:
            notes.append(f"{number} is {config[number]}, and {own[number]} in the VAE that the pipeline's model knows")
    return notes


def _spatial_factor(config: dict[str, Any]) -> int:
    return family_from_config(config, device="meta").spatial_factor


def _read(path: Path, *, field: str) -> dict[str, Any]:
    if not path.is_file():
        raise within(mark(field), f"there is no {path}")
    return json.loads(path.read_text(encoding="utf-8"))
