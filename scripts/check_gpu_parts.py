"""The parts of check_gpu.py that are one process each: `check_gpu_parts.py PART full|small [PHOTOS]`.

Each prints its verdicts as lines of JSON, as soon as it has them.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from check_gpu_jpeg import jpeg
from check_gpu_speed import DEVICE, ON_GPU, PRECISION, architecture, speed
from check_gpu_verdicts import Verdict, near, quick
from diffusers.models.upsampling import Upsample2D
from roofline import ceiling_of, measured_ceiling, seconds_of, seconds_of_kernels, size_of
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm_vae.models.blocks import upsample
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.kernels import fused

LEAST_RATE = 0.2  # of the memory's, from which on a norm is called fast: a sound H200 has 0.3 to 0.45 on large maps
LEAST_OF_SHEET = 0.6  # an H200 has 0.69 of its product's, and 0.87 of its memory's


def main() -> None:
    """Run the part that is asked for."""
    part, size, data = sys.argv[1:]
    parts: dict[str, Callable[[], Iterator[Verdict]]] = {
        "machine": machine,
        "kernels": kernels,
        "coding": lambda: coding(small=size == "small"),
        "speed": lambda: speed(small=size == "small", data=Path(data) if data else None),
        "jpeg": lambda: jpeg(Path(data), small=size == "small"),
    }
    for verdict in parts[part]():
        print(verdict.to_line(), flush=True)


def machine() -> Iterator[Verdict]:
    """What is there, and what it does beside its sheet."""
    found: dict[str, Any] = {"torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    if ON_GPU:
        properties = torch.cuda.get_device_properties(DEVICE)
        found |= {
            "name": properties.name, "memory_gib": properties.total_memory / 2**30,
            "capability": f"{properties.major}.{properties.minor}", "devices": torch.cuda.device_count(),
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    words = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
    )
    yield Verdict(check="machine", verdict="found", found=words, figures=found)
    here, sheet = measured_ceiling(DEVICE, PRECISION), ceiling_of(DEVICE, PRECISION)
    for check, value, least, unit in (
        (f"machine: {PRECISION} product", here.flops, sheet.flops, "TFLOP/s"),
        ("machine: copy", here.bytes, sheet.bytes, "TB/s"),
    ):
        figures = {"measured": value, "sheet": None if sheet.measured else least}
        if sheet.measured:
            yield Verdict(check=check, verdict="found", found=f"{value / 1e12:.4g} {unit}", figures=figures)
        else:
            share = value / least
            yield quick(
                check,
                share,
                least=LEAST_OF_SHEET,
                found=f"{value / 1e12:.4g} {unit}, {share:.0%} of the sheet",
                figures=figures,
            )


def kernels() -> Iterator[Verdict]:
    """Our kernels beside torch's operators; interpreted where there is no GPU."""
    if ON_GPU:
        used = fused.use_kernels(DEVICE)
        words = "used" if used else "not used: switched off, no Triton, an older card, or they failed (see stderr)"
        yield Verdict(check="kernels", verdict="found" if used else "slow", found=words)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        name = str(dtype).removeprefix("torch.")
        yield near(f"kernels: {name}", fused.relative_error(DEVICE, dtype), limit=limit, what="off by")
    if ON_GPU:
        for images, channels, side in ((16, 128, 256), (16, 256, 128), (16, 512, 64), (16, 512, 32), (1, 128, 1024)):
            yield from norm_kernels(images, channels, side)
        yield upsampling(256, 512)
        yield upsampling(512, 256)
        yield attention(128)


def norm_kernels(images: int, channels: int, side: int) -> Iterator[Verdict]:
    """Group norm and SiLU, forward and backward, beside the least traffic and torch's own operators."""
    hidden = torch.randn(images, channels, side, side, device=DEVICE, dtype=torch.bfloat16)
    hidden = hidden.to(memory_format=torch.channels_last)
    weight, bias = torch.ones(2, channels, device=DEVICE)
    mean, rstd = fused.group_norm_silu(hidden, weight, bias, 32, 1e-6, True)[1:]
    rows = weight.to(hidden.dtype), bias.to(hidden.dtype)
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "forward": (2, lambda: fused.group_norm_silu(hidden, weight, bias, 32, 1e-6, True)),
        "backward": (3, lambda: fused.group_norm_silu_backward(hidden, hidden, weight, bias, mean, rstd, True)),
    }
    torchs = seconds_of_kernels(lambda: F.silu(F.group_norm(hidden, 32, *rows, 1e-6)), at_least=0.02)
    for name, (passes, call) in calls.items():
        seconds = seconds_of_kernels(call, at_least=0.02)
        share = passes * size_of(hidden) / seconds / ceiling_of(DEVICE, "bf16").bytes
        beside = f", {torchs / seconds:.2f} times as fast as torch's" if name == "forward" else ""
        found = f"{seconds * 1e6:.0f} µs, {share:.0%} of the memory's rate for the least traffic{beside}"
        figures = {"seconds": seconds, "share": share, "torch_seconds": torchs if name == "forward" else None}
        check = f"kernels: {name} {images}x{channels}x{side}²"
        yield quick(check, share, least=LEAST_RATE, found=found, figures=figures)


def upsampling(channels: int, side: int) -> Verdict:
    """The transposed convolution beside doubling and convolving."""
    hidden = torch.randn(1, channels, side, side, device=DEVICE, dtype=torch.bfloat16)
    hidden = hidden.to(memory_format=torch.channels_last)
    block = Upsample2D(channels, use_conv=True).to(DEVICE, torch.bfloat16, memory_format=torch.channels_last)
    plain = seconds_of(lambda: block(hidden), device=DEVICE, at_least=0.05)
    folded = seconds_of(lambda: upsample(block, hidden), device=DEVICE, at_least=0.05)
    found = f"folded {folded * 1e3:.2f} ms, plain {plain * 1e3:.2f} ms"
    check = f"kernels: upsample {channels}x{side}²"
    return quick(check, plain / folded, least=1.0, found=found, figures={"folded": folded, "plain": plain})


def attention(side: int) -> Verdict:
    """Attention of one head of 512 channels over a large picture's positions, by each of torch's ways."""
    query, key, value = torch.randn(3, 1, 1, side * side, 512, device=DEVICE, dtype=torch.bfloat16)
    figures: dict[str, float] = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                call = functools.partial(F.scaled_dot_product_attention, query, key, value)
                figures[name.lower()] = seconds_of(call, device=DEVICE, at_least=0.05)
        except RuntimeError:  # no such kernel for so many channels
            continue
    figures["default"] = seconds_of(
        lambda: F.scaled_dot_product_attention(query, key, value), device=DEVICE, at_least=0.05
    )
    words = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in figures.items())
    return Verdict(check=f"kernels: attention {side}² of 512", verdict="found", found=words, figures=figures)


def coding(*, small: bool) -> Iterator[Verdict]:
    """Latents and pictures beside those of the CPU's float32."""
    family, side = architecture(small=small), 64 if small else 256
    images = F.interpolate(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), side, mode="bicubic")
    images = images.clamp(0, 1) * 2 - 1
    exact = InferenceAutoencoder(copy.deepcopy(family), bf16=False, device=torch.device("cpu"))
    latents = exact.encode(images)[0]
    pictures = exact.decode(latents)
    for bf16, limit in ((False, 1e-4), (True, 0.05)) if ON_GPU else ((True, 0.05),):
        ours = InferenceAutoencoder(copy.deepcopy(family), bf16=bf16, device=DEVICE)
        name = "bf16" if bf16 else "float32"
        for _ in range(3):  # the first calls of a shape may take other ways than later ones
            mean, decoded = ours.encode(images)[0].cpu(), ours.decode(latents).cpu()
        yield near(f"coding: latents in {name}", relative(mean, latents), limit=limit, what="off by")
        yield near(f"coding: pictures in {name}", relative(decoded, pictures), limit=limit, what="off by")


def relative(found: Tensor, exact: Tensor) -> float:
    """Return the relative error."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


if __name__ == "__main__":
    main()
