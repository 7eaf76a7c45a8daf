"""Small image files for the tests of the data layer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_picture(width: int, height: int) -> Image.Image:
    """A picture with coarse and fine detail, like a photograph's, that no turn or mirror leaves unchanged."""
    coarse = Image.fromarray(noise(6, 9, 3)).resize((width, height), Image.Resampling.BICUBIC)
    fine = Image.fromarray(noise(height // 4, width // 4, 3, seed=1)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.2)


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    """The content of a file of the image."""
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def write_grey(path: Path, value: int, *, size: tuple[int, int] = (12, 8)) -> None:
    """Write a picture of one grey value, which tells it from others after any crop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def psnr(image: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = np.mean((np.asarray(image, dtype=float) - np.asarray(reference, dtype=float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
