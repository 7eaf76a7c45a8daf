"""`density`: bounds on the density that an autoencoder gives to pictures, in bits per dimension."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldm_vae.config.commands.density import DensityOptions
from ldm_vae.config.rules import require, require_divides
from ldm_vae.density.autoencoder import DensityModel, load_density_model
from ldm_vae.density.measure import MeasuredDensities, measure_densities
from ldm_vae.density.results import (
    Bound,
    density_protocol,
    describe_bounds,
    describe_likelihood,
    format_bounds,
    num_nonfinite,
)
from ldm_vae.evaluation.reading import ImagePass
from ldm_vae.evaluation.results import Protocol, package_versions
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages, spread_indices
from ldm_vae.images.guard import SkippedImage
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.precision import exact_float32
from ldm_vae.system.cores import count_workers
from ldm_vae.system.files import write_whole
from ldm_vae.system.launch import join_processes
from ldm_vae.system.output_kinds import DENSITY
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.strict_json import dump_json
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable, short_name

METRICS, TABLE, FIGURES = "metrics.json", "table.md", "per_picture.jsonl"


@dataclass(frozen=True, kw_only=True)
class DensitySummary:
    """What was measured and where it is; `str()` is what the command line prints."""

    bounds: dict[str, Bound]
    """`elbo`, `iwae`, `distortion` and `rate`, in bits per dimension."""
    table: str
    num_images: int
    num_nonfinite: int
    """Pictures of which a figure isn't a finite number."""
    skipped: list[SkippedImage]
    notes: list[str]
    output: Path

    @property
    def problem(self) -> str | None:
        """Return, in one line, how many pictures have no finite figures; None where all have."""
        if self.num_nonfinite == 0:
            return None
        return f"vae: the bounds of {self.num_nonfinite} of {self.num_images} pictures aren't finite"

    def __str__(self) -> str:
        """Return the table and where the files are."""
        lines = [self.table, *self.notes]
        if self.skipped:
            first = self.skipped[0]
            which = f"{printable(first.name)} ({printable(first.reason)})"
            lines.append(f"{counted(len(self.skipped), 'image')} skipped, listed in {METRICS}; the first: {which}")
        named = (("metrics", METRICS), ("table", TABLE), ("pictures", FIGURES))
        return "\n".join([*lines, *(f"{what}: {self.output / name}" for what, name in named)])


def density(options: DensityOptions) -> DensitySummary:
    """Bound the density of pictures, and write metrics.json, table.md and a line for each picture.

    Raises:
        ValueError: In one line, for an output that is taken, data or weights that can't be read, and an autoencoder
            that gives no density, with the reason.
    """
    output = OutputFolder(options.output, kind=DENSITY)
    output.check(overwrite=options.overwrite)
    processes = join_processes()
    exact_float32()
    model = load_density_model(options)
    factor = model.family.spatial_factor
    if options.resolution is not None:
        require_divides(factor, options.resolution, name="resolution", whose="the model's factor")
    options.check_channels(model.family.in_channels)
    digest = fingerprint(model.family).whole
    model.family.to(processes.device, memory_format=torch.channels_last)
    measured = measure_densities(model, _images(options, model), num_samples=options.samples, seed=options.seed)
    cut = Protocol(resolution=options.resolution, factor=factor, bf16=False, perceptual=None, set_features=None).cut
    protocol = density_protocol(model, cut=cut, num_samples=options.samples, seed=options.seed)
    summary = _summary(options, model, measured, protocol=protocol)
    if processes.is_main_process:
        content = {
            "kind": "density",  # within the first bytes, by which the folder is known
            "vae": options.vae,
            "vae_fingerprint": digest,
            **model.which,
            "likelihood": describe_likelihood(model),
            "num_images": summary.num_images,
            "num_skipped": len(summary.skipped),
            "num_nonfinite": summary.num_nonfinite,
            "data_fingerprint": measured.images.fingerprint,
            "protocol": protocol,
            "metrics": {name: asdict(bound) for name, bound in summary.bounds.items()},
            "skipped": [asdict(skip) for skip in summary.skipped],
            "settings": asdict(options),
            "device": processes.device.type,
            "versions": package_versions(),
        }
        lines = [dump_json(asdict(picture)) + "\n" for picture in measured.pictures]
        with output.whole(overwrite=options.overwrite) as folder:
            write_whole(folder / FIGURES, "".join(lines).encode())
            write_whole(folder / TABLE, (summary.table + "\n").encode())
            write_whole(folder / METRICS, (dump_json(content, indent=1) + "\n").encode())
    processes.wait_for_everyone()
    return summary


def _images(options: DensityOptions, model: DensityModel) -> ImagePass:
    collection = open_collection(
        options.data, split=options.split, held_out=True, image_column=options.image_column, rules=options
    )
    return ImagePass(
        dataset=EvaluationImages(
            collection,
            channels=model.family.in_channels,
            resolution=options.resolution,
            multiple_of=model.family.spatial_factor,
        ),
        indices=spread_indices(len(collection), num_images=options.num_images),
        batch_size=options.batch_size,
        num_workers=count_workers(options.num_workers),
        strict=options.strict,
    )


def _summary(
    options: DensityOptions, model: DensityModel, measured: MeasuredDensities, *, protocol: dict[str, Any]
) -> DensitySummary:
    skipped, count = measured.images.skipped, len(measured.pictures)
    first = f"; the first: {skipped[0].name} ({skipped[0].reason})" if skipped else ""
    require(count > 0, f"<data> {options.data}: none of its images can be read{first}")
    bounds = describe_bounds(measured.pictures, protocol=protocol)
    notes = []
    if model.record.beta != 1:
        notes.append(
            f"it was trained with weight {model.record.beta:g} for the KL divergence, not for these bounds, which "
            f"loss.beta 1 makes the objective; they hold all the same"
        )
    return DensitySummary(
        bounds=bounds,
        table=format_bounds(short_name(options.vae), model, bounds, num_images=count, num_samples=options.samples),
        num_images=count,
        num_nonfinite=num_nonfinite(measured.pictures),
        skipped=skipped,
        notes=notes,
        output=Path(options.output).expanduser(),
    )
