"""Seconds and peak memory of decoding a picture, beside the floor of the work.

    python scripts/bench_decode.py [--vae VAE] [--sides 512 1024 2048] [--batch_size 1] [--rounds 5]
        [--ways bf16 bf16-compile diffusers-bf16] [--output decode.json]

A way is what decodes and how, joined by dashes:

    bf16, float32   ours, as `ldm-vae decode` runs it
    compile         ours with torch.compile
    diffusers       the model as diffusers loads it, in that precision, channels_last

The ways take turns, and each line is the median over the rounds. The floor is what the convolutions, products and
norms would take if each went as fast as the arithmetic or the memory of the device allows; `convolutions` is what part
of the time its convolutions would take one after the other, with nothing between them. Without --vae, the Stable
Diffusion architecture with random weights is used, whose speed is that of trained weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_encode import stable_diffusion_vae
from roofline import Floor, Precision, once
from torch import Tensor

from ldm_vae.models.families import family_of
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder, local_device
from ldm_vae.models.load import load_vae
from ldm_vae.models.precision import exact_float32

WAYS = ("bf16", "bf16-compile", "float32", "float32-compile", "diffusers-bf16", "diffusers-float32")
COLUMNS = ("ms", "MFU", "x floor", "convolutions", "peak GiB")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", help="folder or hub id; none: Stable Diffusion's architecture, random weights")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048], help="pixels of a picture's side")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["bf16", "diffusers-bf16"])
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    family = family_of(stable_diffusion_vae()) if options.vae is None else load_vae(options.vae).family
    results = [result for side in options.sides for result in measure(family, side, options)]
    print(f"{'way':24}{'side':>6}" + "".join(f"{column:>14}" for column in COLUMNS))
    for result in results:
        numbers = (
            f"{result['seconds'] * 1e3:.2f}", f"{result['mfu']:.1%}", f"{result['times_the_floor']:.2f}",
            f"{result['share_in_convolutions']:.1%}", f"{result['peak_gib']:.2f}",
        )  # fmt: skip
        print(f"{result['way']:24}{result['side']:6}" + "".join(f"{number:>14}" for number in numbers))
    if options.output is not None:
        options.output.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=1) + "\n")


@torch.no_grad()
def measure(family: Family, side: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a line a way, for one size."""
    device = local_device()
    shape = (options.batch_size, family.latent_channels, side // family.spatial_factor, side // family.spatial_factor)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    runs = {way: decoder(copy.deepcopy(family), way, latents) for way in options.ways}
    floors: dict[Precision, Floor] = {}
    for way in options.ways:
        precision: Precision = "bf16" if "bf16" in way else "float32"
        if precision not in floors:
            plain = decoder(copy.deepcopy(family), precision, latents)
            floors[precision] = Floor.of(plain, device=device, precision=precision)
            print(f"{side}, {precision}: {floors[precision]}", flush=True)
    peaks = {way: peak_bytes(run, device) for way, run in runs.items()}  # compiles, too
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(options.rounds):
        for way, run in runs.items():
            seconds[way].append(once(run, device=device))
    results = []
    for way in runs:
        floor, median = floors["bf16" if "bf16" in way else "float32"], statistics.median(seconds[way])
        results.append(
            {"way": way, "side": side, "seconds": median, "images_per_second": options.batch_size / median}
            | floor.compared(median)
            | {"peak_gib": peaks[way] / 2**30, "floor": asdict(floor)}
        )
    return results


def decoder(family: Family, way: str, latents: Tensor) -> Callable[[], object]:
    """Return what decodes `latents` in a way."""
    bf16 = "bf16" in way
    if way.startswith("diffusers"):
        if not bf16:
            exact_float32()
        dtype = torch.bfloat16 if bf16 else torch.float32
        family.eval().to(latents.device, dtype, memory_format=torch.channels_last)
        return lambda: family.decode(latents.to(dtype))
    ours = InferenceAutoencoder(family, bf16=bf16, device=latents.device)
    if way.endswith("compile"):
        family.model.decoder.compile()
    return lambda: ours.decode(latents)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that a call takes at the most beside what is held, on a GPU; 0 elsewhere."""
    run()
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held


if __name__ == "__main__":
    main()
