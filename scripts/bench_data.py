"""Decoding and cropping of JPEGs, measured on one core beside Pillow's plain way.

    python scripts/bench_data.py --photos PHOTOS [--megapixels 0.3 3 12] [--resolution 256] [--output bench.json]

Every photograph is scaled to each number of megapixels and saved as a JPEG. Then, in turn and in one run, a square
about its middle is read by `read_crop`, as training and encoding do, and by `Image.open().convert("RGB").resize()`
with the same square and Pillow's default filter. Times are medians over rounds and photographs, the speed-up is the
median of the ratios in each pair, and the PSNR between both results is of the worst and of the median photograph.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, features

from ldm_vae.images.decoding import read_crop
from ldm_vae.images.folders import list_images
from ldm_vae.images.transforms import Box


@dataclass(kw_only=True)
class Result:
    """Figures of one size of JPEG and one size of crop."""

    megapixels: float
    crop: float
    """Side of the square, as part of the short side."""
    plain_ms: float
    ours_ms: float
    speedup: float
    psnr_min: float
    psnr_median: float


def middle_square(part: float) -> Callable[[tuple[int, int]], Box]:
    """Return the function that gives the square about the middle of a picture, its side a `part` of the short side."""

    def box_of(size: tuple[int, int]) -> Box:
        side = int(min(size) * part)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return left, top, left + side, top + side

    return box_of


def plain_crop(path: Path, *, resolution: int, box_of: Callable[[tuple[int, int]], Box]) -> Image.Image:
    """What a user would write."""
    image = Image.open(path).convert("RGB")
    return image.resize((resolution, resolution), box=box_of(image.size))


def psnr(image: Image.Image, reference: Image.Image) -> float:
    error = np.mean((np.asarray(image, dtype=float) - np.asarray(reference, dtype=float)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def timed(read: Callable[[], Image.Image]) -> tuple[Image.Image, float]:
    start = time.perf_counter()
    image = read()
    return image, time.perf_counter() - start


def write_scaled(photos: list[Path], folder: Path, *, megapixels: float, quality: int) -> list[Path]:
    paths = []
    for number, photo in enumerate(photos):
        image = Image.open(photo).convert("RGB")
        scale = math.sqrt(megapixels * 1e6 / (image.width * image.height))
        size = (round(image.width * scale), round(image.height * scale))
        paths.append(folder / f"{number}-{megapixels:g}.jpg")
        image.resize(size, Image.Resampling.LANCZOS).save(paths[-1], quality=quality)
    return paths


def measure(paths: list[Path], *, megapixels: float, part: float, resolution: int, rounds: int) -> Result:
    box_of = middle_square(part)
    plain_times, our_times, similarities = [], [], []
    for path in paths:
        for _ in range(rounds):
            reference, seconds = timed(partial(plain_crop, path, resolution=resolution, box_of=box_of))
            plain_times.append(1e3 * seconds)
            crop, seconds = timed(partial(read_crop, path, channels=3, resolution=resolution, box_of=box_of))
            our_times.append(1e3 * seconds)
        similarities.append(psnr(crop, reference))
    return Result(
        megapixels=megapixels,
        crop=part,
        plain_ms=statistics.median(plain_times),
        ours_ms=statistics.median(our_times),
        speedup=statistics.median(plain / ours for plain, ours in zip(plain_times, our_times, strict=True)),
        psnr_min=min(similarities),
        psnr_median=statistics.median(similarities),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="folder of photographs")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.3, 3, 12])
    parser.add_argument("--crops", type=float, nargs="+", default=[1, 0.5, 0.25], help="parts of the short side")
    parser.add_argument("--resolution", type=int, default=256, help="side of the result")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    parser.add_argument("--num_photos", type=int, default=8, help="at most so many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="JSON file for the figures")
    options = parser.parse_args()

    photos = [Path(options.photos, name) for name in list_images(options.photos)][: options.num_photos]
    if not photos:
        parser.error(f"--photos: {options.photos} holds no image")
    results = []
    print("| megapixels | crop | plain (ms) | ours (ms) | speed-up | PSNR, worst (dB) | PSNR, median (dB) |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in options.megapixels:
            paths = write_scaled(photos, Path(folder), megapixels=megapixels, quality=options.quality)
            for part in options.crops:
                result = measure(
                    paths, megapixels=megapixels, part=part, resolution=options.resolution, rounds=options.rounds
                )
                results.append(result)
                print(
                    f"| {megapixels:g} | {part:g} | {result.plain_ms:.1f} | {result.ours_ms:.1f} | "
                    f"{result.speedup:.2f} | {result.psnr_min:.1f} | {result.psnr_median:.1f} |"
                )
    if options.output:
        settings = vars(options) | {
            "photos": len(photos),
            "pillow": Image.__version__,
            "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
        }
        Path(options.output).write_text(
            json.dumps({"settings": settings, "results": [asdict(result) for result in results]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
