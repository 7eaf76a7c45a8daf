"""`evaluate`: the reconstruction quality of one or several autoencoders on the same images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.rules import require, require_divides
from ldm_vae.config.views import view_of
from ldm_vae.evaluation.features import load_networks
from ldm_vae.evaluation.grid import save_grid
from ldm_vae.evaluation.measure import (
    Comparison,
    measure_reconstructions,
    short_name,
    spread_indices,
)
from ldm_vae.evaluation.pictures import PictureLog, write_pictures
from ldm_vae.evaluation.results import Evaluation, Protocol, channel_figures, describe_scores, package_versions
from ldm_vae.evaluation.tables import format_table, more_tables
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.images.training import SkippedImage
from ldm_vae.models.exact import enable_exact_tiling, tell_plan
from ldm_vae.models.families.family import Family
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.load import load_vae
from ldm_vae.models.precision import exact_float32, use_bf16
from ldm_vae.panel.measures import describe_measures
from ldm_vae.panel.panel import measure_panels
from ldm_vae.panel.sums import PanelImages
from ldm_vae.reporting.report import write_report
from ldm_vae.system.cores import count_workers
from ldm_vae.system.files import write_whole
from ldm_vae.system.launch import join_processes
from ldm_vae.system.output_kinds import EVALUATION, REPORT
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.strict_json import dump_json
from ldm_vae.system.text import printable

METRICS, TABLE = "metrics.json", "table.md"


@dataclass(frozen=True, kw_only=True)
class EvaluateSummary:
    """What `evaluate` found and where it is; `str()` is what the command line prints."""

    evaluations: list[Evaluation]
    """An entry each resolution and autoencoder."""
    skipped: list[SkippedImage]
    metrics: Path
    table: Path
    grids: list[Path]
    report: Path | None
    """None where none was asked for."""

    @property
    def problem(self) -> str | None:
        """Return, in one line, which autoencoders gave no finite figures, and how; None where all are there."""
        clauses = []
        for evaluation in self.evaluations:
            if evaluation.num_nonfinite or evaluation.nonfinite_metrics:
                size = "" if evaluation.resolution is None else f" at {evaluation.resolution}"
                clauses.append(
                    f"{evaluation.vae}{size}: {evaluation.num_nonfinite} of {evaluation.num_images} reconstructions "
                    f"hold NaN or infinity; no figure for {', '.join(evaluation.nonfinite_metrics) or 'these'}"
                )
        return f"vae: {'; '.join(clauses)}" if clauses else None

    def __str__(self) -> str:
        """Return the table and where the files are."""
        lines = [format_table(self.evaluations), *(f"\n{table}\n" for table in more_tables(self.evaluations))]
        if self.skipped:
            first = self.skipped[0]
            which = f"{printable(first.name)} ({printable(first.reason)})"
            lines.append(f"{len(self.skipped)} skipped, listed in {self.metrics}; the first: {which}")
        lines += [f"metrics: {self.metrics}", f"table: {self.table}"]
        lines += [f"pictures: {grid}" for grid in self.grids]
        return "\n".join(lines if self.report is None else [*lines, f"report: {self.report}"])


def evaluate(options: EvaluateOptions) -> EvaluateSummary:
    """Reconstruct the same images with each autoencoder and write metrics.json, table.md and picture grids.

    Raises:
        ValueError: In one line, for an output that is taken, data or weights that can't be read, and autoencoders that
            don't fit the data, the resolution or each other.
    """
    output = OutputFolder(options.output, kind=EVALUATION)
    output.check(overwrite=options.overwrite)
    processes = join_processes()
    device = processes.device
    exact_float32()
    families = _load_families(options, device=device)
    channels = _common_channels(options.vae, families)
    factor = max(family.spatial_factor for family in families)
    resolutions: list[int | None] = [None] if options.resolution is None else [*options.resolution]
    for resolution in resolutions:
        if resolution is not None:
            require_divides(factor, resolution, name="resolution", whose="the factor")
    collection = open_collection(
        options.data,
        split=options.split,
        held_out=True,
        image_column=options.image_column,
        rules=options,
    )
    options.check_channels(channels)
    view = view_of(channels, chosen=options.perceptual_channels, numbers=options.reads_numbers)
    perceptual_name, perceptual, set_features = load_networks(options, view, channels=channels, device=device)
    bf16 = use_bf16(options.mixed_precision, device=device)

    evaluations: list[Evaluation] = []
    comparisons: list[Comparison] = []
    indices = spread_indices(len(collection), num_images=options.num_images)
    num_kept = options.report_pictures
    logs = [PictureLog(indices=indices, num_kept=num_kept, factor=factor, view=view) for _ in resolutions]
    for resolution, log in zip(resolutions, logs, strict=True):
        comparison = measure_reconstructions(
            families,
            EvaluationImages(collection, channels=channels, resolution=resolution, multiple_of=factor),
            indices=indices,
            batch_size=options.batch_size,
            num_workers=count_workers(options.num_workers),
            bf16=bf16,
            perceptual=perceptual,
            set_features=set_features,
            num_pictures=options.num_pictures,
            strict=options.strict,
            log=log,
            view=view,
            per_channel=options.per_channel,
        )
        protocol = Protocol(
            resolution=resolution,
            factor=factor,
            bf16=bf16,
            perceptual=perceptual_name,
            set_features=set_features,
            view=view,
            value_range=options.value_range,
        )
        comparisons.append(comparison)
        evaluations += _evaluations(options.vae, families, comparison, protocol=protocol)

    if options.panel:
        panel_images = [
            PanelImages(
                dataset=EvaluationImages(collection, channels=channels, resolution=resolution),
                indices=indices,
                batch_size=options.batch_size,
                num_workers=count_workers(options.num_workers),
                perceptual=perceptual,
                label=collection.label,
                strict=options.strict,
            )
            for resolution in resolutions
        ]
        evaluations = _with_panels(evaluations, families, panel_images, bf16=bf16)
    summary = EvaluateSummary(
        evaluations=evaluations,
        skipped=list({skip.index: skip for comparison in comparisons for skip in comparison.images.skipped}.values()),
        metrics=output.path / METRICS,
        table=output.path / TABLE,
        grids=[
            output.path / _grid_name(resolution, resolutions) for resolution in resolutions if options.num_pictures > 0
        ],
        report=output.path / REPORT if options.report else None,
    )
    if processes.is_main_process:
        with output.whole(overwrite=options.overwrite) as folder:
            kept = [
                write_pictures(
                    folder,
                    log,
                    resolution=resolution,
                    latents=[measurement.summary.latents for measurement in comparison.measurements],
                    perceptual=perceptual_name,
                )
                for resolution, log, comparison in zip(resolutions, logs, comparisons, strict=True)
            ]
            pictures = [comparison.pictures for comparison in comparisons]
            _write(folder, summary, options=options, pictures=pictures, kept=kept, device=device.type)
        if options.report:
            write_report([output.path])
    processes.wait_for_everyone()
    return summary


def _load_families(options: EvaluateOptions, *, device: torch.device) -> list[Family]:
    """Load the autoencoders onto the device, within the memory that they may take."""
    families = [load_vae(source, needs_scaling=False, **options.vae_arguments).family for source in options.vae]
    for family in families:
        family.to(device, memory_format=torch.channels_last)
        if options.memory_gib is not None:
            enable_exact_tiling(family.model, memory_gib=options.memory_gib, tell=tell_plan)
    return families


def _common_channels(sources: list[str], families: list[Family]) -> int:
    """Return the number of image channels that all autoencoders take, with which the data is read."""
    channels = families[0].in_channels
    for source, family in zip(sources, families, strict=True):
        own = family.in_channels
        require(
            own == channels,
            f"<vae>: {sources[0]} takes {channels} image channels and {source} takes {own}; evaluate them apart",
        )
        require(
            family.out_channels == own,
            f"<vae>: {source} makes {family.out_channels} channels of {own}, which can't be compared",
        )
    return channels


def _evaluations(
    sources: list[str], families: list[Family], comparison: Comparison, *, protocol: Protocol
) -> list[Evaluation]:
    names = [short_name(source) for source in sources]
    if len(set(names)) < len(names):
        names = sources
    evaluations = []
    for source, name, family, measurement in zip(sources, names, families, comparison.measurements, strict=True):
        summary = measurement.summary
        channels = {
            "std": summary.latents.channel_std,
            "mean_variance": summary.latents.channel_mean_variance,
        }
        if summary.latents.channel_kl is not None:
            channels["kl"] = summary.latents.channel_kl
        evaluations.append(
            Evaluation(
                vae=source,
                name=name,
                vae_fingerprint=fingerprint(family).whole,
                resolution=protocol.resolution,
                num_images=summary.num_images,
                num_skipped=len(comparison.images.skipped),
                num_nonfinite=summary.num_nonfinite,
                data_fingerprint=comparison.images.fingerprint,
                protocol=protocol.record(),
                metrics=describe_scores(measurement, protocol=protocol),
                channels=channels,
                image_channels=channel_figures(summary.image_channels, protocol=protocol),
            )
        )
    return evaluations


def _with_panels(
    evaluations: list[Evaluation], families: list[Family], sizes: list[PanelImages], *, bf16: bool
) -> list[Evaluation]:
    """Return the evaluations with their panels; the autoencoders can't be trained any more, nor digested."""
    device = join_processes().device
    autoencoders = [InferenceAutoencoder(family, bf16=bf16, device=device) for family in families]
    panels = [panel for images in sizes for panel in measure_panels(autoencoders, images)[0]]
    return [replace(evaluation, panel=panel) for evaluation, panel in zip(evaluations, panels, strict=True)]


def _grid_name(resolution: int | None, resolutions: list[int | None]) -> str:
    return "grid.png" if len(resolutions) == 1 else f"grid-{resolution}.png"


def _write(
    folder: Path,
    summary: EvaluateSummary,
    *,
    options: EvaluateOptions,
    pictures: list[list[list[Image.Image]]],
    kept: list[dict[str, Any]],
    device: str,
) -> None:
    """Write all files into `folder`, which becomes the output."""
    titles = ["original", *(printable(evaluation.name) for evaluation in summary.evaluations[: len(options.vae)])]
    for path, rows in zip(summary.grids, pictures, strict=False):
        save_grid(folder / path.name, rows, titles=titles)
    tables = [format_table(summary.evaluations), *more_tables(summary.evaluations)]
    write_whole(folder / TABLE, ("\n\n".join(tables) + "\n").encode())
    content = {
        "kind": "evaluations",  # within the first bytes, by which the folder is known to be an evaluation's
        "options": asdict(options),
        "device": device,
        "versions": package_versions(),
        "evaluations": [asdict(evaluation) for evaluation in summary.evaluations],
        "measures": describe_measures() if options.panel else {},
        "pictures": kept,
        "skipped": [asdict(skipped) for skipped in summary.skipped],
    }
    write_whole(folder / METRICS, (dump_json(content, indent=1) + "\n").encode())
