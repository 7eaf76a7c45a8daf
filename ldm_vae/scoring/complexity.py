"""How many bits a picture takes without loss: what its likelihood is corrected by."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_vae.config.names import Compressor

_MODES = (1, 3, 4)
_OPTIONS: dict[Compressor, dict[str, object]] = {
    "png": {"format": "PNG", "optimize": True},
    "webp": {"format": "WEBP", "lossless": True, "exact": True, "quality": 100, "method": 6},
}


def complexity_bits(pixels: Tensor, *, compressor: Compressor) -> float:
    """Return the bits an element that a lossless compressor takes for a picture.

    It is L(x) of Serrà et al. 2020, "Input complexity and out-of-distribution detection with likelihood-based
    generative models", over the picture's C·H·W; the file's header counts, as it does there. Pictures of 1, 3 and 4
    channels are compressed as grey, RGB and RGBA, others a channel at a time.

    Args:
        pixels: [C, H, W], uint8.
        compressor: Which one.
    """
    array = pixels.permute(1, 2, 0).cpu().numpy()
    parts = [array] if array.shape[-1] in _MODES else np.split(array, array.shape[-1], axis=-1)
    size = 0
    for part in parts:
        buffer = io.BytesIO()
        plain = part[..., 0] if part.shape[-1] == 1 else part
        Image.fromarray(np.ascontiguousarray(plain)).save(buffer, **_OPTIONS[compressor])  # type: ignore[arg-type]
        size += buffer.tell()
    return 8 * size / array.size


def describe_compressor(compressor: Compressor) -> str:
    """Return, in words, what compresses."""
    how = {"png": "PNG, as Pillow optimises it", "webp": "lossless WebP of method 6"}[compressor]
    return f"{how}, header included"
