"""Small pictures, as images and as files, for all tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Return random bytes of a shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(seed: int, *, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """Return a smooth picture (L, RGB or RGBA) that no other seed gives; the size is (width, height)."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    return Image.fromarray(noise(4, 4, channels, seed=seed).squeeze()).resize(size, Image.Resampling.BICUBIC)


def smooth_picture(width: int, height: int) -> Image.Image:
    """Return a picture with coarse and fine detail, like a photograph's, that no turn or mirror leaves unchanged."""
    coarse = Image.fromarray(noise(6, 9, 3)).resize((width, height), Image.Resampling.BICUBIC)
    fine = Image.fromarray(noise(height // 4, width // 4, 3, seed=1)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.2)


def save_pictures(folder: Path, *, count: int, size: tuple[int, int] = (24, 20), first_seed: int = 0) -> str:
    """Write smooth pictures 0000.png, 0001.png, …, one a seed, into a new folder; return its path."""
    folder.mkdir(parents=True)
    for i in range(count):
        picture(first_seed + i, size=size).save(folder / f"{i:04d}.png")
    return str(folder)


def write_grey(path: Path, value: int, *, size: tuple[int, int] = (12, 8)) -> None:
    """Write a picture of one grey value, which tells it from others after any crop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    """Return the content of a file of the image."""
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def psnr(image: Image.Image, reference: Image.Image) -> float:
    """Return the peak signal-to-noise ratio in dB."""
    error = np.mean((np.asarray(image, dtype=float) - np.asarray(reference, dtype=float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
