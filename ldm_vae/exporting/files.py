"""What an export is on the disk: weights in either layout, read back and compared, and the card with its picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.names import DType
from ldm_vae.config.rules import require
from ldm_vae.evaluation.grid import save_grid
from ldm_vae.exporting.card import PICTURE, CardContent, model_card
from ldm_vae.exporting.convert import whole_folder, write_ldm_file
from ldm_vae.models.autoencoder import spatial_factor
from ldm_vae.models.layouts.ldm import read_ldm_file
from ldm_vae.models.precision import DTYPES
from ldm_vae.system.files import sync_folder
from ldm_vae.system.strict_json import dump_json

MEASUREMENTS = "measurements.json"
_NOT_COMPARED = ("_name_or_path", "_diffusers_version", "_use_default_values")


@contextmanager
def export_place(options: ExportOptions, *, is_main: bool) -> Iterator[Path | None]:
    """Where the main process writes: a folder that becomes the output when the block ends, or the future file.

    Raises:
        ValueError: before any work, where the output is taken or misnamed.
    """
    output = Path(options.output).expanduser()
    if not is_main:
        yield None
    elif options.format == "diffusers":
        with whole_folder(output, overwrite=options.overwrite) as folder:
            yield folder
            for path in folder.iterdir():
                sync_folder(path)  # files too
    else:
        require(output.suffix == ".safetensors", f"output: {output} must end in .safetensors, being a single file")
        require(not output.is_dir(), f"output: {output} is a folder; format ldm writes a file")
        require(
            options.overwrite or not output.exists(), f"output: {output} is there already; --overwrite replaces it"
        )
        yield output


def with_fields(autoencoder: AutoencoderKL, fields: Mapping[str, Any], *, dtype: DType) -> AutoencoderKL:
    """A copy on the CPU, in `dtype`, whose config has these fields."""
    config = {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
    copy = AutoencoderKL.from_config({**config, **fields})
    copy.load_state_dict(autoencoder.state_dict())
    return nn.Module.to(copy, DTYPES[dtype]).eval()


def variant(options: ExportOptions) -> str | None:
    """diffusers' name for the weights' type, in the file's name."""
    return "fp16" if options.dtype == "float16" else None


def write_weights(exported: AutoencoderKL, place: Path, *, options: ExportOptions) -> None:
    """Write weights and config, read them back and compare names, types, bits, config and a reconstruction.

    Raises:
        RuntimeError: something differs; a single file is then removed again.
    """
    dtype = DTYPES[options.dtype]
    if options.format == "diffusers":
        exported.save_pretrained(place, variant=variant(options))
        read = AutoencoderKL.from_pretrained(
            place, variant=variant(options), torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False
        )
        check_equal(exported, read)
        return
    config = json.loads(exported.to_json_string())
    write_ldm_file(place, exported.state_dict(), config=config, overwrite=options.overwrite)
    try:
        check_equal(exported, nn.Module.to(read_ldm_file(place), dtype))
    except RuntimeError:
        place.unlink()
        raise


def check_equal(exported: AutoencoderKL, read: AutoencoderKL) -> None:
    """Raise `RuntimeError`, naming what differs, unless both are the same autoencoder to the bit."""
    expected, found = exported.state_dict(), read.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found or not _bits_equal(expected[name], found[name]):
            raise RuntimeError(f"the export doesn't read back as it was written: {name} differs")
    for name, value in exported.config.items():
        if name not in _NOT_COMPARED and json.dumps(read.config[name]) != json.dumps(value):
            raise RuntimeError(f"the export doesn't read back as it was written: {name} is {read.config[name]}")
    side = 2 * spatial_factor(exported)
    images = torch.rand(1, exported.config.in_channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before, after = (nn.Module.float(model.eval())(images).sample for model in (exported, read))
    if not torch.equal(before, after):
        raise RuntimeError("the export doesn't reconstruct as what was exported")


def _bits_equal(expected: Tensor, found: Tensor) -> bool:
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return False
    return torch.equal(expected.contiguous().view(torch.uint8), found.contiguous().view(torch.uint8))


def write_card(card: CardContent, folder: Path, *, pictures: Sequence[Sequence[Image.Image]]) -> None:
    """Write README.md, its picture, and all numbers as JSON."""
    model_card(card).save(folder / "README.md")
    save_grid(folder / PICTURE, pictures, titles=["original", "reconstruction"])
    measurements = {
        "step": card.step,
        "weights": card.weights,
        "versions": card.versions,
        "latents": {"data": card.latents_data, **asdict(card.latents_read), **asdict(card.latents)},
        "reconstruction": {
            "data": card.metrics_data,
            **asdict(card.metrics_read),
            "metrics": {name: asdict(metric) for name, metric in card.metrics.items()},
        },
        "precision": {**asdict(card.precision), "statement": card.precision_statement},
    }
    (folder / MEASUREMENTS).write_text(dump_json(measurements, indent=1) + "\n", encoding="utf-8")
