"""`evaluate`: the reconstruction quality of one or several autoencoders on the same images."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.rules import require
from ldm_vae.evaluation.features import MeasuringNetworks, load_networks
from ldm_vae.evaluation.measure import Comparison, measure_reconstructions
from ldm_vae.evaluation.pictures import PictureLog
from ldm_vae.evaluation.ray_evaluate import Devices, find_devices, measure_on_ray
from ldm_vae.evaluation.reading import ImagePass
from ldm_vae.evaluation.results import Evaluation, Protocol, channel_figures, describe_scores
from ldm_vae.evaluation.subjects import Evaluated, load_families, open_evaluated
from ldm_vae.evaluation.summary import METRICS, TABLE, EvaluateSummary, MeasuredSize, write_evaluation
from ldm_vae.images.evaluation import spread_indices
from ldm_vae.models.families.family import Family
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.precision import exact_float32, use_bf16
from ldm_vae.panel.panel import measure_panels
from ldm_vae.panel.sums import PanelImages
from ldm_vae.reporting.report import write_report
from ldm_vae.system.cores import count_workers
from ldm_vae.system.launch import join_processes
from ldm_vae.system.output_kinds import EVALUATION, REPORT
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.ray_cluster import ray_cluster
from ldm_vae.system.text import short_name


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What is measured, and by what, at every size of picture."""

    options: EvaluateOptions
    families: list[Family]
    evaluated: Evaluated
    indices: list[int]
    """The images that are measured."""
    networks: MeasuringNetworks
    bf16: bool
    device: str
    """Type of device that measures."""
    ray: Any
    """The package, connected to the cluster that measures; None where this launch does."""


def evaluate(options: EvaluateOptions) -> EvaluateSummary:
    """Reconstruct the same images with each autoencoder and write metrics.json, table.md and picture grids.

    Raises:
        ValueError: In one line, for an output that is taken, data or weights that can't be read, and autoencoders that
            don't fit the data, the resolution or each other.
    """
    output = OutputFolder(options.output, kind=EVALUATION)
    output.check(overwrite=options.overwrite)
    with ExitStack() as stack:
        ray = stack.enter_context(ray_cluster(options.ray.address)) if options.engine == "ray" else None
        return _evaluate(options, output, ray=ray)


def _evaluate(options: EvaluateOptions, output: OutputFolder, *, ray: Any) -> EvaluateSummary:
    processes = join_processes()
    require(
        ray is None or processes.num_processes == 1,
        f"<engine> is ray, which has processes of its own; start it by one process instead of "
        f"{processes.num_processes}",
    )
    exact_float32()
    inputs = _open_inputs(options, device=processes.device, ray=ray)
    resolutions = inputs.evaluated.resolutions
    sizes = [_measure_size(inputs, resolution) for resolution in resolutions]
    evaluations = [evaluation for size in sizes for evaluation in size.evaluations]
    if options.panel:
        evaluations = _with_panels(evaluations, inputs, resolutions)
    skipped = {skip.index: skip for size in sizes for skip in size.comparison.images.skipped}
    grids = [output.path / _grid_name(resolution, resolutions) for resolution in resolutions]
    summary = EvaluateSummary(
        evaluations=evaluations,
        skipped=list(skipped.values()),
        metrics=output.path / METRICS,
        table=output.path / TABLE,
        grids=grids if options.num_pictures > 0 else [],
        report=output.path / REPORT if options.report else None,
        noun=inputs.evaluated.collection.noun,
    )
    if processes.is_main_process:
        name, device = inputs.networks.perceptual_name, inputs.device
        with output.whole(overwrite=options.overwrite) as folder:
            write_evaluation(folder, summary, sizes, options=options, perceptual=name, device=device)
        if options.report:
            write_report([output.path])
    processes.wait_for_everyone()
    return summary


def _open_inputs(options: EvaluateOptions, *, device: torch.device, ray: Any) -> _Inputs:
    """Load the autoencoders, open the images and load the networks, each checked against those before."""
    devices = Devices(kind=device.type, bf16=use_bf16(options.mixed_precision, device=device))
    if ray is not None:  # the weights go to its devices from the CPU
        device, devices = torch.device("cpu"), find_devices(ray, options.mixed_precision)
    families = load_families(options, device=device)
    evaluated = open_evaluated(options, families)
    return _Inputs(
        options=options,
        families=families,
        evaluated=evaluated,
        indices=spread_indices(len(evaluated.collection), num_images=options.num_images),
        networks=load_networks(options, evaluated.view, channels=families[0].out_channels, device=device),
        bf16=devices.bf16,
        device=devices.kind,
        ray=ray,
    )


def _measure_size(inputs: _Inputs, resolution: int | None) -> MeasuredSize:
    """Measure all autoencoders on images of one size; None: whole pictures."""
    options, networks, factor = inputs.options, inputs.networks, inputs.evaluated.factor
    samples = inputs.evaluated.samples(resolution)
    images = ImagePass(
        dataset=samples,
        indices=inputs.indices,
        batch_size=options.batch_size,
        num_workers=count_workers(options.num_workers),
        strict=options.strict,
    )
    log = PictureLog(indices=inputs.indices, num_kept=options.report_pictures, factor=factor, view=networks.view)
    arguments: dict[str, Any] = {
        "networks": networks,
        "bf16": inputs.bf16,
        "num_pictures": options.num_pictures,
        "log": log,
    }
    arguments |= {"per_channel": options.per_channel}
    if inputs.ray is not None:
        comparison = measure_on_ray(inputs.ray, inputs.families, images, memory_gib=options.memory_gib, **arguments)
    else:
        comparison = measure_reconstructions(inputs.families, images, **arguments)
    protocol = Protocol(
        resolution=resolution,
        is_sound=options.mel_frames is not None,
        factor=factor,
        bf16=inputs.bf16,
        perceptual=networks.perceptual_name,
        set_features=networks.set_features,
        view=networks.view,
        value_range=samples.target_range,
        target_channels=samples.target_channels,
    )
    return MeasuredSize(
        resolution=resolution,
        comparison=comparison,
        log=log,
        evaluations=_evaluations(options.vae, inputs.families, comparison, protocol=protocol),
    )


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


def _with_panels(evaluations: list[Evaluation], inputs: _Inputs, resolutions: list[int | None]) -> list[Evaluation]:
    """Return the evaluations with their panels; the autoencoders can't be trained any more, nor digested."""
    options, device = inputs.options, join_processes().device
    autoencoders = [InferenceAutoencoder(family, bf16=inputs.bf16, device=device) for family in inputs.families]
    panels = []
    for resolution in resolutions:
        images = PanelImages(
            dataset=inputs.evaluated.images(resolution),
            indices=inputs.indices,
            batch_size=options.batch_size,
            num_workers=count_workers(options.num_workers),
            perceptual=inputs.networks.perceptual,
            label=inputs.evaluated.label,
            strict=options.strict,
        )
        panels += measure_panels(autoencoders, images)[0]
    return [replace(evaluation, panel=panel) for evaluation, panel in zip(evaluations, panels, strict=True)]


def _grid_name(resolution: int | None, resolutions: list[int | None]) -> str:
    return "grid.png" if len(resolutions) == 1 else f"grid-{resolution}.png"
