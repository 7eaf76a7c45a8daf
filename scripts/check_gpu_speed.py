"""The times of check_gpu.py: images a second, each beside what could be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench_encode import stable_diffusion_vae
from check_gpu_verdicts import Verdict, quick
from diffusers import AutoencoderKL
from roofline import Floor, Precision, seconds_of

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
        yield from encoding(family, side=side, batch=batch)
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
            if ON_GPU:
                chosen = [*arguments, "--jpeg_decoder", "nvjpeg"]
                yield from bench("bench_encode.py", chosen, output, {}, " by nvJPEG", encoded)


def step(name: str, *, small: bool) -> list[str]:
    """Return bench_train.py's arguments."""
    ours, reference = f"ours-{PRECISION}", f"reference-{PRECISION}"
    variants = [ours, *([f"{ours}-compile"] if ON_GPU else []), *([] if name else [reference])]
    if small:
        sizes = ["--config", "quickstart", "--perceptual", "none", "--resolution", "64", "--batch_size", "2"]
        return [*sizes, "--rounds", "1", "--warmup", "1", "--variants", *variants]
    sizes = ["--config", "kl_f8", "--resolution", "256", "--batch_size", "16"]
    return [*sizes, "--rounds", "3", "--steps", "3", "--warmup", "3", "--variants", *variants]


def encoding(family: Family, *, side: int, batch: int) -> Iterator[Verdict]:
    """Time the encoder on images that are on the device, on a GPU compiled too."""
    encoder = InferenceAutoencoder(family, bf16=PRECISION == "bf16", device=DEVICE)
    images = torch.rand(batch, 3, side, side, device=DEVICE) * 2 - 1
    # Counted at the first call: the second would be counted twice, since it is recorded, and the third not at all.
    floor = Floor.of(lambda: encoder.encode(images), device=DEVICE, precision=PRECISION)
    for _ in range(3):  # which set things up
        encoder.encode(images)
    check = f"speed: encode {batch}x{side}²"
    seconds = seconds_of(lambda: encoder.encode(images), device=DEVICE, at_least=0.5)
    yield of_speed(check, floor.compared(seconds), batch / seconds)
    if not ON_GPU:
        return
    family.halves[0].network.compile()
    shorter = InferenceAutoencoder(family, bf16=PRECISION == "bf16", device=DEVICE)  # with recordings of its own
    for _ in range(3):
        shorter.encode(images)
    compiled = seconds_of(lambda: shorter.encode(images), device=DEVICE, at_least=0.5)
    yield of_compiling(check, kernels=seconds, compiled=compiled)


def of_compiling(check: str, *, kernels: float, compiled: float) -> Verdict:
    """Return which is faster here, torch.compile as well as our kernels or these alone, of their seconds."""
    times = kernels / compiled
    words = f"{times:.2f} times as fast as without; {'set' if times > 1 else 'leave out'} LDM_VAE_COMPILE=on"
    figures = {"kernels": kernels, "compiled": compiled}
    return Verdict(check=f"{check}, compiled", verdict="found", found=words, figures=figures)


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
    seconds = {(result["side"], result["way"]): result["seconds"] for result in results["results"]}
    for side, way in seconds:
        if f"{way}-compile" in {other for _, other in seconds}:
            yield of_compiling(
                f"speed: decode {side}²{name}", kernels=seconds[side, way], compiled=seconds[side, f"{way}-compile"]
            )


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


def architecture(*, small: bool) -> Family:
    """Return Stable Diffusion's autoencoder with random weights, or a small one."""
    if not small:
        return family_of(stable_diffusion_vae())
    torch.manual_seed(0)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return family_of(AutoencoderKL(block_out_channels=(32, 64), layers_per_block=1, **levels))
