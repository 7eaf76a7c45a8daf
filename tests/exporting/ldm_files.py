"""What the tests of single LDM files share: tiny autoencoders, and files compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import Tensor

from ldm_vae.config.commands.convert import ConvertOptions
from ldm_vae.exporting.convert import convert
from ldm_vae.models.layouts.ldm import ldm_state_dict

DOWN, UP = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def build(*, widths: tuple[int, ...] = (8, 16), attention: tuple[bool, ...] = (False, True), **fields: Any):
    """A tiny autoencoder in eval mode, every tensor random."""
    config = {
        "block_out_channels": widths,
        "norm_num_groups": 4,
        "down_block_types": tuple(DOWN[there] for there in attention),
        "up_block_types": tuple(UP[there] for there in reversed(attention)),
    }
    autoencoder = AutoencoderKL(**(config | fields)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in autoencoder.state_dict().values():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return autoencoder


def config_of(autoencoder: AutoencoderKL) -> dict[str, Any]:
    return json.loads(autoencoder.to_json_string())


def ldm_of(autoencoder: AutoencoderKL) -> dict[str, Tensor]:
    return ldm_state_dict(autoencoder.state_dict(), config=config_of(autoencoder))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def run(source: Path, output: Path, **options: Any):
    return convert(ConvertOptions(input=str(source), output=str(output), **options))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
