"""Where bf16 convolutions run: on hardware that has them, under autocast, with float32 weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ldm_vae.config.names import MixedPrecision

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""torch's types by the names that settings take."""


def use_bf16(mixed_precision: MixedPrecision, *, device: torch.device) -> bool:
    """Return whether convolutions run in bf16; for `auto` they do where the device multiplies bf16 in hardware."""
    if mixed_precision != "auto":
        return mixed_precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def exact_float32() -> None:
    """Let float32 convolutions and products be exact in this process from here on.

    By torch's default, GPUs since Ampere round a convolution's operands to TF32, which has the ten bits of float16.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextlib.contextmanager
def same_float32() -> Iterator[None]:
    """Give back, after the block, the precision of float32 that there was before it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def autocast(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Return bf16 autocast on `device`.

    There is no float16: its range overflows in a VAE and needs loss scaling, which a gradient split between two losses
    does not survive.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
