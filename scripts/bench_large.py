"""A large image through an autoencoder: whole, in exact strips, and in diffusers' blended tiles.

    python scripts/bench_large.py --side 1024 --half decode --memory_gib 0.3 0.6

Each way runs in a process of its own. Printed are the process's peak memory beside the weights, processor seconds, and
the largest difference from the whole image's result, as a part of its range. Without `--vae` it is
Stable Diffusion's architecture with random weights. Tiles are of 512 pixels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.build import build_autoencoder
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.load import load_vae
from ldm_vae.training.capacity import GIB, PeakMemory

TILE = 512


def main() -> None:
    """Measure each way, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="Side of the image in pixels.")
    parser.add_argument("--half", choices=("encode", "decode"), default="decode")
    parser.add_argument("--memory_gib", type=float, nargs="+", default=[0.6], help="Budgets for exact strips.")
    parser.add_argument("--vae", help="Folder, hub id or file of an autoencoder.")
    parser.add_argument("--float32", action="store_true", help="Compute in float32 instead of bf16.")
    parser.add_argument("--skip", nargs="*", default=[], choices=("whole", "tiles"), help="Ways that aren't measured.")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments)
        return
    ways = [way for way in ("whole", *map(str, arguments.memory_gib), "tiles") if way not in arguments.skip]
    print("| way | peak memory, GiB | processor seconds | largest difference |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        expected = None
        for way in ways:
            result = Path(folder, f"{way}.pt")
            command = [sys.executable, *sys.argv, "--way", way, "--result", str(result)]
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            figures = json.loads(printed.splitlines()[-1])
            output = torch.load(result, weights_only=True)
            expected = output if way == "whole" else expected
            difference = "" if expected is None else f"{difference_of(output, expected):.1e}"
            name = way if way in ("whole", "tiles") else f"strips, {way} GiB"
            print(f"| {name} | {figures['gib']:.2f} | {figures['seconds']:.1f} | {difference} |", flush=True)


def difference_of(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a part of the expected values' range."""
    return float((output - expected).abs().max() / (expected.max() - expected.min()))


def measure(arguments: argparse.Namespace) -> None:
    """Run one way, write what it gives, and print its figures."""
    torch.manual_seed(0)
    family = load_vae(arguments.vae).family if arguments.vae else build_autoencoder(ModelConfig())
    way = arguments.way
    budget = None if way in ("whole", "tiles") else float(way)
    model = InferenceAutoencoder(family, bf16=not arguments.float32, memory_gib=budget)
    side = arguments.side
    encodes = arguments.half == "encode"
    if encodes:
        image = 2 * torch.rand(1, family.in_channels, side, side) - 1
    else:
        image = torch.randn(1, family.latent_channels, side // family.spatial_factor, side // family.spatial_factor)
    run = (lambda batch: model.encode(batch)[0]) if encodes else model.decode
    run(image[:, :, :16, :16])
    if way == "tiles":
        family.model.tile_sample_min_size = TILE
        family.model.tile_latent_min_size = TILE // family.spatial_factor
        family.model.enable_tiling()
        if encodes:
            run = lambda batch: family.model.encode(batch).latent_dist.mean.float()  # noqa: E731
    memory = PeakMemory(model.device)
    held, start = memory.current, time.process_time()
    with torch.no_grad():
        output = run(image)
    figures = {"seconds": time.process_time() - start, "gib": (memory.peak - held) / GIB}
    torch.save(output.cpu(), arguments.result)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
