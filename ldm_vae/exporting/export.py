"""`export`: a run's autoencoder as diffusers loads it, with its latent scaling and 16-bit headroom measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.rules import require
from ldm_vae.evaluation.measure import MeasuredLatents
from ldm_vae.evaluation.results import Score, package_versions
from ldm_vae.exporting.card import CardContent
from ldm_vae.exporting.convert import ONE_HALF
from ldm_vae.exporting.fields import scaling_fields, taught_fields, tile_size
from ldm_vae.exporting.files import config_of, export_place, variant, with_fields, write_card, write_weights
from ldm_vae.exporting.headroom import PrecisionReport
from ldm_vae.exporting.hub import push_folder
from ldm_vae.exporting.measurements import RunMeasurements, measure_run
from ldm_vae.exporting.readers import reader_notes
from ldm_vae.exporting.stand_in import stand_in_for_encoder
from ldm_vae.images.guard import SkippedImage
from ldm_vae.latents.statistics import ChannelMoments
from ldm_vae.metrics.latents import LatentSummary
from ldm_vae.models.families import FAMILIES
from ldm_vae.models.families.family import Family
from ldm_vae.models.precision import exact_float32
from ldm_vae.system.launch import join_processes
from ldm_vae.system.places import is_address
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable
from ldm_vae.training.run_autoencoder import RunAutoencoder, load_run_autoencoder


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What was written and measured; `str()` is what the command line prints."""

    output: Path | str
    """Path or address."""
    checkpoint: Path
    step: int
    config: dict[str, Any]
    """Of the exported model, as in its config.json."""
    scaling: dict[str, Any]
    """How its latents are normalised (`Family.scaling`)."""
    latents: LatentSummary
    metrics: dict[str, Score]
    precision: PrecisionReport
    precision_statement: str
    skipped: list[SkippedImage]
    url: str | None
    """Where it was uploaded to."""
    notes: list[str]
    """What other programs do otherwise with a single LDM file."""
    noun: str = "image"
    """What it was measured on: images or sounds."""

    def __str__(self) -> str:
        """Return what was written and measured, in lines."""
        scaling = f"scaling_factor {self.scaling['scaling_factor']:.6g}"
        if self.scaling["shift_factor"] is not None:
            scaling += f", shift_factor {self.scaling['shift_factor']:.6g}"
        if self.scaling.get("patch_size") is not None:
            scaling = "mean and variance of the latents' patches a channel"
        elif self.scaling["latents_mean"] is not None:
            scaling += ", latents_mean and latents_std a channel"
        lines = [
            f"{printable(str(self.output))}: {self.checkpoint.name}, {scaling} over "
            f"{counted(self.latents.num_images, self.noun)}",
            f"PSNR {self.metrics['psnr'].value:.2f} dB; {self.precision_statement}",
        ]
        if self.skipped:
            first = self.skipped[0]
            lines.append(f"{counted(len(self.skipped), self.noun)} skipped; the first: {first}")
        return "\n".join([*lines, *self.notes, *([f"uploaded to {self.url}"] if self.url else [])])


def export(options: ExportOptions) -> ExportSummary:
    """Measure a run's autoencoder over its data, write it, read it back and compare.

    Raises:
        ValueError: In one line, for a run, data or output that can't be used, or a target that doesn't fit the model.
        RuntimeError: What was written doesn't read back the same; nothing is left of it.
    """
    processes = join_processes()
    exact_float32()
    run = load_run_autoencoder(Path(options.run).expanduser(), checkpoint=options.checkpoint, weights=options.weights)
    _check_target(options, family=run.family)
    stand_in_for_encoder(run, teacher=options.teacher, device=processes.device)
    with export_place(options, is_main=processes.is_main_process) as place:
        measured = measure_run(run, options)
        exported = _exported(run, measured, options)
        if place is not None:
            write_weights(exported, place, options=options)
            if options.format == "diffusers":
                write_card(_card(run, measured, exported, options), place)
    processes.wait_for_everyone()
    url = None
    if options.push_to_hub is not None and processes.is_main_process:
        url = push_folder(Path(options.output).expanduser(), repo_id=options.push_to_hub, private=options.private)
    config = config_of(exported)
    return ExportSummary(
        output=options.output if is_address(options.output) else Path(options.output).expanduser(),
        checkpoint=run.checkpoint,
        step=run.step,
        config=config,
        scaling=exported.scaling,
        latents=measured.latents.summary,
        metrics=measured.metrics,
        precision=measured.precision,
        precision_statement=measured.precision_statement,
        skipped=measured.latents.images.skipped,
        url=url,
        notes=reader_notes(config) if options.format == "ldm" else [],
        noun=measured.latents_data.images.noun,
    )


def _exported(run: RunAutoencoder, measured: RunMeasurements, options: ExportOptions) -> Family:
    """Return the autoencoder as it is written: in the asked type, its config with all that was measured."""
    fields = scaling_fields(options, latents=measured.latents.summary) | taught_fields(run)
    fields |= {"force_upcast": not measured.precision.float16_is_safe, "sample_size": tile_size(run)}
    return with_fields(measured.family, fields, patches=_patches(run, measured.latents), dtype=options.dtype)


def _card(run: RunAutoencoder, measured: RunMeasurements, exported: Family, options: ExportOptions) -> CardContent:
    """Return what the model card tells."""
    return CardContent(
        name=options.push_to_hub or Path(options.output).resolve().name,
        exported=exported,
        variant=variant(options),
        run=run,
        weights="averaged (EMA)" if options.weights == "ema" and run.config.train.ema_decay > 0 else "raw",
        measured=measured,
        versions=package_versions(),
        license=options.license,
        made_latents=None if exported.has_encoder else options.teacher or run.config.model.teacher,
    )


def _single_file_classes() -> list[str]:
    return [each.class_name() for each in FAMILIES.values() if each.has_single_file]


def _check_target(options: ExportOptions, *, family: Family) -> None:
    require(
        not options.per_channel or family.latent_channels == 4,
        f"<per_channel>: SDXL's pipelines read statistics of 4 channels, and this model has {family.latent_channels}",
    )
    require(
        options.format == "diffusers" or family.has_single_file,
        f"<format>: the LDM layout is for {' and '.join(_single_file_classes())}; for {family.class_name()} take "
        f"diffusers",
    )
    require(
        options.format == "diffusers" or family.has_encoder,
        f"<format>: {options.run} trained a decoder alone: {ONE_HALF}",
    )
    unread = [name for name in ("shift", "per_channel") if getattr(options, name) and name not in family.scalings]
    require(
        not unread,
        f"<{unread[0] if unread else ''}>: latents of {family.class_name()} aren't normalised so; leave it out",
    )


def _patches(run: RunAutoencoder, found: MeasuredLatents) -> ChannelMoments | None:
    """The statistics that become the model's; None where it keeps its own, or has none.

    A decoder trained alone leaves a pretrained encoder's latents as they are, and with them what diffusion models were
    trained on. A teacher's normalised latents stay as they are too.
    """
    model = run.config.model
    keeps = model.teacher is not None or (model.pretrained is not None and model.decoder_only)
    return None if keeps else found.patches
