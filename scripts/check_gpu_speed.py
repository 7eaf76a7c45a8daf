"""The times of check_gpu.py: images a second, and JPEG files decoded, each beside what could be."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_encode import stable_diffusion_vae
from check_gpu_verdicts import Verdict, quick
from diffusers import AutoencoderKL
from PIL import Image
from roofline import Floor, Precision, seconds_of
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from ldm_vae.models.families import family_of
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder, local_device
from ldm_vae.models.precision import use_bf16

SCRIPTS = Path(__file__).parent
DEVICE = local_device()
ON_GPU = DEVICE.type == "cuda"
PRECISION: Precision = "bf16" if use_bf16("auto", device=DEVICE) else "float32"
"""In which times are measured: that of commands by default."""
LEAST_SHARE = 0.6  # of the time in convolutions, from which on it is called fast
COMPARED = ("mfu", "times_the_floor", "share_in_convolutions")


def speed(*, small: bool, data: Path | None) -> Iterator[Verdict]:
    """Images a second, beside what convolutions alone would take."""
    side, batch = (64, 4) if small else (256, 32)
    ways: dict[str, dict[str, str]] = {"": {}}
    if ON_GPU:
        ways |= {" without kernels": {"LDM_VAE_KERNELS": "off"}, " without graphs": {"LDM_VAE_GRAPHS": "off"}}
    with tempfile.TemporaryDirectory() as folder:
        output, vae = Path(folder) / "results.json", Path(folder) / "vae"
        family = architecture(small=small)
        family.model.save_pretrained(vae)
        yield encoding(family, side=side, batch=batch)
        for name, environment in ways.items():
            chosen = [PRECISION, f"{PRECISION}-compile"] if ON_GPU and not name else [PRECISION]
            sides = ["64"] if small else ["512", "1024"]
            arguments = ["--vae", str(vae), "--sides", *sides, "--ways", *chosen]
            yield from bench("bench_decode.py", arguments, output, environment, name, decoded)
        for name, environment in ways.items():
            if "graphs" not in name:  # which training has none of
                yield from bench("bench_train.py", step(name, small=small), output, environment, name, trained)
        if data is not None:
            workers = str(max(1, len(os.sched_getaffinity(0)) - 2))
            arguments = ["--vae", str(vae), "--data", str(data), "--images", "16" if small else "2048"]
            arguments += ["--resolution", str(side), "--batch_size", str(batch), "--num_workers", workers]
            arguments += ["--rounds", "2", "--limit_only"]
            yield from bench("bench_encode.py", arguments, output, {}, "", encoded)


def step(name: str, *, small: bool) -> list[str]:
    """Return bench_train.py's arguments."""
    ours, reference = f"ours-{PRECISION}", f"reference-{PRECISION}"
    variants = [ours, *([f"{ours}-compile"] if ON_GPU else []), *([] if name else [reference])]
    if small:
        sizes = ["--config", "quickstart", "--perceptual", "none", "--resolution", "64", "--batch_size", "2"]
        return [*sizes, "--rounds", "1", "--warmup", "1", "--variants", *variants]
    sizes = ["--config", "kl_f8", "--resolution", "256", "--batch_size", "16"]
    return [*sizes, "--rounds", "3", "--steps", "3", "--warmup", "3", "--variants", *variants]


def encoding(family: Family, *, side: int, batch: int) -> Verdict:
    """Time the encoder on images that are on the device."""
    encoder = InferenceAutoencoder(family, bf16=PRECISION == "bf16", device=DEVICE)
    images = torch.rand(batch, 3, side, side, device=DEVICE) * 2 - 1
    for _ in range(3):  # which set things up
        encoder.encode(images)
    floor = Floor.of(lambda: encoder.encode(images), device=DEVICE, precision=PRECISION)
    seconds = seconds_of(lambda: encoder.encode(images), device=DEVICE, at_least=0.5)
    return of_speed(f"speed: encode {batch}x{side}²", floor.compared(seconds), batch / seconds)


def of_speed(check: str, compared: dict[str, float], rate: float) -> Verdict:
    """Return the verdict on a rate in images a second."""
    share = compared["share_in_convolutions"]
    found = f"{rate:.4g} images/s, MFU {compared['mfu']:.1%}, {compared['times_the_floor']:.2f} times the floor, "
    return quick(
        check, share, least=LEAST_SHARE, found=f"{found}convolutions {share:.0%}", figures={"rate": rate, **compared}
    )


def bench(
    script: str,
    arguments: list[str],
    output: Path,
    environment: dict[str, str],
    name: str,
    read: Callable[[dict[str, Any], str], Iterator[Verdict]],
) -> Iterator[Verdict]:
    """Run a benchmark, and yield the verdicts on what it wrote; one that says so where it fails."""
    command = [sys.executable, str(SCRIPTS / script), *arguments, "--output", str(output)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["without a word"]
        last = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])
        yield Verdict(check=f"speed: {script}{name}", verdict="failed", found=last)
        return
    yield from read(json.loads(output.read_text()), name)


def decoded(results: dict[str, Any], name: str) -> Iterator[Verdict]:
    """Read bench_decode.py's results."""
    for result in results["results"]:
        check = f"speed: decode {result['side']}² {result['way']}{name}"
        yield of_speed(check, {key: result[key] for key in COMPARED}, result["images_per_second"])


def trained(results: dict[str, Any], name: str) -> Iterator[Verdict]:
    """Read bench_train.py's results."""
    for result in results["results"]:
        check = f"speed: train {result['variant']}{name}"
        if result["variant"].startswith("ours"):
            yield of_speed(check, {key: result[key] for key in COMPARED}, result["images_per_second"])
        else:
            found = f"{result['images_per_second']:.4g} images/s; {'; '.join(results['ratios'])}"
            yield Verdict(check=check, verdict="found", found=found, figures={"rate": result["images_per_second"]})


def encoded(results: dict[str, Any], name: str) -> Iterator[Verdict]:
    """Read bench_encode.py's results."""
    share = results["ratios"]["encode_over_the_limit"]
    found = f"{share:.2f} of the bare encoder's rate"
    yield quick(f"speed: encode from JPEG{name}", share, least=0.9, found=found, figures=results)


def jpeg(folder: Path, *, small: bool) -> Iterator[Verdict]:
    """JPEG files decoded by torchvision, on the GPU and by libjpeg on the CPU, beside Pillow."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    files = [path.read_bytes() for path in paths[: 8 if small else 128]]
    buffers = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in files]

    def pillow() -> list[Tensor]:
        pictures = [np.array(Image.open(io.BytesIO(content)).convert("RGB")) for content in files]
        return [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]

    def libjpeg() -> list[Tensor]:
        return [decode_jpeg(buffer, mode=ImageReadMode.RGB) for buffer in buffers]

    def nvjpeg() -> list[Tensor]:
        found: list[Tensor] = decode_jpeg(buffers, mode=ImageReadMode.RGB, device=DEVICE)
        return found

    expected = pillow()
    ways = {"Pillow, one core": pillow, "torchvision, one core": libjpeg} | ({"the GPU": nvjpeg} if ON_GPU else {})
    for name, run in ways.items():
        try:
            found = [image.cpu() for image in run()]
            rate = len(files) / seconds_of(run, device=DEVICE, at_least=0.5)
        except RuntimeError as error:
            yield Verdict(check=f"jpeg: {name}", verdict="failed", found=str(error).splitlines()[0])
            continue
        pairs = [(a.short() - b.short()).abs() for a, b in zip(found, expected, strict=True) if a.shape == b.shape]
        figures = {
            "rate": rate, "mean": float(np.mean([float(pair.float().mean()) for pair in pairs])),
            "worst": max(int(pair.max()) for pair in pairs), "of_another_size": len(found) - len(pairs),
        }  # fmt: skip
        words = (
            f"{rate:.0f} images/s; {figures['mean']:.3g} levels from Pillow in the mean, {figures['worst']} at most"
        )
        yield Verdict(check=f"jpeg: {name}", verdict="found", found=words, figures=figures)


def architecture(*, small: bool) -> Family:
    """Return Stable Diffusion's autoencoder with random weights, or a small one."""
    if not small:
        return family_of(stable_diffusion_vae())
    torch.manual_seed(0)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return family_of(AutoencoderKL(block_out_channels=(32, 64), layers_per_block=1, **levels))
