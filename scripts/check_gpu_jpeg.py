"""What check_gpu.py says of `encode --jpeg_decoder nvjpeg`: is it as right as Pillow, and faster?"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from check_gpu_verdicts import Verdict, quick
from PIL import Image
from roofline import seconds_of
from torch import Tensor

from ldm_vae.config.reading import ReadingRules
from ldm_vae.encoding.device_jpegs import DeviceJpegs
from ldm_vae.encoding.preprocessing import EncodingImage, ImageBatch, Preprocessing, collate
from ldm_vae.images.cells import Stored
from ldm_vae.images.jpegs import JpegCrop
from ldm_vae.latents.shards import Row
from ldm_vae.models.inference import local_device
from ldm_vae.system.cores import count_workers

DEVICE = local_device()
BATCH = 32
LEAST_PSNR = 40.0
"""In dB, between the crops of both decoders: what decoding at a part of the size may cost, which is done anyway."""


def jpeg(folder: Path, *, small: bool) -> Iterator[Verdict]:
    """JPEG files decoded, cropped and resized by the device (without a GPU: by torchvision) beside Pillow."""
    size = (128, 128) if small else (256, 256)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    rules = ReadingRules()
    stored = [Stored(source=path.read_bytes(), name=path.name, rules=rules) for path in paths[: 8 if small else 128]]
    by_pillow = Preprocessing(channels=3, spatial_factor=8, noise_channels=None, seed=0)
    by_device = replace(by_pillow, leave_jpegs=True)
    crops = [by_device.read(one, size=size, sample=0)[0] for one in stored]
    left = [(one, crop) for one, crop in zip(stored, crops, strict=True) if isinstance(crop, JpegCrop)]
    words = f"{len(left)} of {len(stored)} files, at {size[0]}²"
    yield Verdict(check="jpeg: left to the device", verdict="found", found=words, figures={"files": len(left)})
    if not left:
        return
    expected = [by_pillow.read(one, size=size, sample=0)[0] for one, _ in left]
    decoder = DeviceJpegs(DEVICE, channels=3, rules=rules)
    batches = [
        batch_of([crop for _, crop in left[start : start + BATCH]], size) for start in range(0, len(left), BATCH)
    ]
    decoded = [decoder.decoded(batch) for batch in batches]
    refused = len(left) - sum(batch.num_by_device for batch in decoded)
    found = [image.cpu() for batch in decoded if batch.pixels is not None for image in batch.pixels]
    yield from compare([one for one, _ in left], found, expected, refused=refused)
    pillow = len(left) / seconds_of(
        lambda: [by_pillow.read(one, size=size, sample=0) for one, _ in left], device=torch.device("cpu"), at_least=0.5
    )
    device = len(left) / seconds_of(lambda: [decoder.decoded(batch) for batch in batches], device=DEVICE, at_least=0.5)
    yield rates(pillow, device, workers=count_workers(None))


def batch_of(crops: list[JpegCrop], size: tuple[int, int]) -> ImageBatch:
    """Return a batch of files as decoding processes hand it over."""
    rows = [Row(sample=number, image=number, source=str(number)) for number in range(len(crops))]
    batch = collate([EncodingImage(row=row, pixels=crop) for row, crop in zip(rows, crops, strict=True)])
    batch.size = size
    return batch


def compare(stored: list[Stored], found: list[Tensor], expected: list[Tensor], *, refused: int) -> Iterator[Verdict]:
    """Say how far the crops of both decoders are apart, for files of as many colours as pixels and for others."""
    groups: dict[str, list[Tensor]] = {}
    for one, ours, pillows in zip(stored, found, expected, strict=True):
        assert isinstance(one["source"], bytes)
        with Image.open(io.BytesIO(one["source"])) as image:
            luma = image.layer[0]  # type: ignore[attr-defined]
        name = "colours at every pixel" if luma[1:3] == (1, 1) else "fewer colours than pixels"
        groups.setdefault(name, []).append((ours.short() - pillows.short()).abs())
    for name, apart in groups.items():
        worst = max(int(levels.max()) for levels in apart)
        squared = sum(float(levels.float().square().mean()) for levels in apart) / len(apart)
        psnr = 10 * math.log10(255**2 / squared) if squared else math.inf
        words = f"{psnr:.1f} dB from Pillow over {len(apart)} files, {worst} levels at most, {refused} refused"
        figures = {"psnr": psnr, "worst": worst, "files": len(apart), "refused": refused}
        verdict = "right" if psnr >= LEAST_PSNR else "wrong"
        yield Verdict(check=f"jpeg: {name}", verdict=verdict, found=words, figures=figures)


def rates(pillow: float, device: float, *, workers: int) -> Verdict:
    """Say which decoder is faster; both rates are in images a second, Pillow's of one core."""
    share = device / (pillow * workers)
    advice = "--jpeg_decoder nvjpeg" if share >= 1 else "leave jpeg_decoder out"
    words = f"{device:.0f} images/s, Pillow {pillow:.0f} on a core: {share:.2f} of {workers} workers; {advice}"
    figures = {"device": device, "pillow": pillow, "workers": workers}
    return quick("jpeg: the device beside Pillow", share, least=1.0, found=words, figures=figures)
