"""What an export is on the disk: weights in either layout, read back and compared, and the card with its picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.names import DType
from ldm_vae.config.rules import require
from ldm_vae.evaluation.grid import save_grid
from ldm_vae.exporting.card import PICTURE, CardContent, model_card
from ldm_vae.exporting.convert import check_ldm_name, check_ldm_output, write_diffusers_files, write_ldm_file
from ldm_vae.exporting.fields import config_of
from ldm_vae.latents.statistics import ChannelMoments
from ldm_vae.models.families.family import Family
from ldm_vae.models.layouts.ldm import read_ldm_file
from ldm_vae.models.precision import DTYPES
from ldm_vae.system.files import sync_folder
from ldm_vae.system.float64 import float64_tensor
from ldm_vae.system.output_kinds import EXPORT
from ldm_vae.system.output_stores import output_at
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.places import is_address, open_store
from ldm_vae.system.strict_json import dump_json
from ldm_vae.system.text import printable
from ldm_vae.training.likelihood import LikelihoodRecord

MEASUREMENTS = "measurements.json"
_NOT_COMPARED = ("_name_or_path", "_diffusers_version", "_use_default_values")


@contextmanager
def export_place(options: ExportOptions, *, is_main: bool) -> Iterator[Path | None]:
    """Yield where the main process writes: a folder that becomes the output when the block ends, or the future file.

    Raises:
        ValueError: Before any work, where the output is taken, misnamed or can't be written.
    """
    output = Path(options.output).expanduser()
    if not is_main:
        yield None
    elif is_address(options.output):
        with _place_at_address(options) as place:
            yield place
    elif options.format == "diffusers":
        with OutputFolder(output, kind=EXPORT).whole(overwrite=options.overwrite) as folder:
            yield folder
            for path in folder.iterdir():
                sync_folder(path)  # files too
    else:
        check_ldm_output(output, overwrite=options.overwrite)
        yield output


@contextmanager
def _place_at_address(options: ExportOptions) -> Iterator[Path]:
    """Yield a temporary folder, or file, that is put at the address when the block ends."""
    if options.format == "diffusers":
        with output_at(options.output, kind=EXPORT).whole(overwrite=options.overwrite) as folder:
            yield folder
        return
    folder_address, _, name = options.output.rpartition("/")
    check_ldm_name(options.output)
    require(is_address(folder_address), f"<output> {printable(options.output)} names no bucket")
    output_at(folder_address, kind=EXPORT).check_writable()
    store = open_store(folder_address)
    require(
        options.overwrite or not store.exists(name),
        f"<output> {printable(options.output)} is there already; <overwrite> replaces it",
    )
    with store.writing(name) as path:
        yield path


def with_fields(family: Family, fields: Mapping[str, Any], *, patches: ChannelMoments | None, dtype: DType) -> Family:
    """A copy on the CPU, in `dtype`, whose config has those of the fields that it knows.

    Args:
        family: The autoencoder.
        fields: Fields of config.json.
        patches: Moments of its latents' patches, where these become its statistics.
        dtype: Type of the weights.
    """
    copy = family.with_fields(fields)
    if patches is not None:
        variance = [deviation / patches.count for deviation in patches.deviation]
        copy.set_statistics(mean=float64_tensor(patches.mean), variance=float64_tensor(variance))
    return copy.to(DTYPES[dtype]).eval()


def variant(options: ExportOptions) -> str | None:
    """Return diffusers' word for the weights' type in the file's name, where it has one."""
    return "fp16" if options.dtype == "float16" else None


def write_weights(exported: Family, place: Path, *, options: ExportOptions) -> None:
    """Write weights and config, read them back and compare names, types, bits, config and a reconstruction.

    Raises:
        RuntimeError: Something differs; a single file is then removed again.
    """
    dtype, config = DTYPES[options.dtype], config_of(exported)
    if options.format == "diffusers":
        write_diffusers_files(place, exported.model.state_dict(), config=config, variant=variant(options))
        read = exported.from_pretrained(
            place, variant=variant(options), torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False
        )
        check_equal(exported, read)
        return
    write_ldm_file(place, exported.model.state_dict(), config=config, overwrite=options.overwrite)
    try:
        check_equal(exported, read_ldm_file(place).to(dtype))
    except RuntimeError:
        place.unlink()
        raise


def check_equal(exported: Family, read: Family) -> None:
    """Raise `RuntimeError`, naming what differs, unless both are the same autoencoder to the bit."""
    expected, found = exported.model.state_dict(), read.model.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found or not _bits_equal(expected[name], found[name]):
            raise RuntimeError(f"the export doesn't read back as it was written: {name} differs")
    for name, value in exported.model.config.items():
        if name not in _NOT_COMPARED and json.dumps(read.model.config[name]) != json.dumps(value):
            raise RuntimeError(f"the export doesn't read back as it was written: {name} is {read.model.config[name]}")
    side = 2 * exported.spatial_factor
    images = torch.rand(1, exported.in_channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before, after = (family.to(torch.float32).eval().model(images).sample for family in (exported, read))
    if not torch.equal(before, after):
        raise RuntimeError("the export doesn't reconstruct as what was exported")


def _bits_equal(expected: Tensor, found: Tensor) -> bool:
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return False
    expected, found = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (expected, found))
    return torch.equal(expected, found)


def write_card(card: CardContent, folder: Path) -> None:
    """Write README.md, its picture, and all numbers as JSON."""
    model_card(card).save(folder / "README.md")
    save_grid(folder / PICTURE, card.measured.reconstructions.pictures, titles=["original", "reconstruction"])
    measured = card.measured
    measurements = {
        "step": card.run.step,
        "weights": card.weights,
        "versions": card.versions,
        "latents": {
            "data": measured.latents_data.name,
            "data_kind": measured.latents_data.kind or None,
            **asdict(measured.latents.images),
            **asdict(measured.latents.summary),
        },
        "reconstruction": {
            "data": measured.reconstructions_data.name,
            "data_kind": measured.reconstructions_data.kind or None,
            **asdict(measured.reconstructions.images),
            "metrics": {name: asdict(metric) for name, metric in measured.metrics.items()},
        },
        "strips": asdict(measured.strips),
        "precision": {**asdict(measured.precision), "statement": measured.precision_statement},
        "likelihood": asdict(LikelihoodRecord.of(card.run)),
    }
    (folder / MEASUREMENTS).write_text(dump_json(measurements, indent=1) + "\n", encoding="utf-8")
