"""A large image through an autoencoder: whole, in exact strips, and in diffusers' blended tiles.

    python scripts/bench_large.py --side 1024 --half decode --memory_gib 0.3 0.6

Each way runs in a process of its own and is a row of a Markdown table: the process's peak memory beside the weights,
time, and the largest difference from the first row's result, as a part of its range. The whole image runs only where
it fits into the memory that is free; else the first budget's strips are the first row. Without `--vae` it is Stable
Diffusion's architecture with random weights, and what it decodes is noise. Tiles are of 512 pixels.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.model import ModelConfig
from ldm_vae.images.transforms import middle_box, to_tensor
from ldm_vae.models.build import build_autoencoder
from ldm_vae.models.exact import disable_exact_tiling, enable_exact_tiling, plan_of
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.load import load_vae
from ldm_vae.training.capacity import GIB, PeakMemory

TILE = 512
BOUNDLESS = 1e6  # GiB: the network runs as it is
COLUMNS = ("way", "peak memory, GiB", "seconds", "processor seconds", "largest difference", "root mean square")


def main() -> None:
    """Measure each way, and print a Markdown table."""
    arguments = parse()
    if arguments.way:
        measure(arguments)
        return
    ways = [way for way in ("whole", *map(str, arguments.memory_gib), "tiles") if way not in arguments.skip]
    if "whole" in ways and (needed := whole_gib(arguments)) > (free := free_gib()):
        print(f"the whole image takes about {needed:.1f} GiB and {free:.1f} are free, so it isn't run\n", flush=True)
        ways.remove("whole")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        expected = None
        for way in ways:
            result = Path(folder, "result.pt")
            command = [sys.executable, *sys.argv, "--way", way, "--result", str(result)]
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            figures = json.loads(printed.splitlines()[-1])
            output = torch.load(result, weights_only=True)
            errors = ("", "") if expected is None else differences(output, expected)
            expected = output if expected is None else expected
            name = way if way in ("whole", "tiles") else f"strips, {way} GiB"
            row = (name, f"{figures['gib']:.2f}", f"{figures['wall']:.1f}", f"{figures['seconds']:.1f}", *errors)
            print(f"| {' | '.join(row)} |", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, help="Side of the image in pixels; by default the picture's own sides.")
    parser.add_argument("--half", choices=("encode", "decode"), default="decode")
    parser.add_argument("--memory_gib", type=float, nargs="+", default=[0.6], help="Budgets for exact strips.")
    parser.add_argument("--vae", help="Folder, hub id or file of an autoencoder.")
    parser.add_argument("--no_attention", action="store_true", help="The architecture without attention.")
    parser.add_argument("--image", default="noise", help="`noise`, `gradient`, or a picture, whose latent is decoded.")
    parser.add_argument("--float32", action="store_true", help="Compute in float32 instead of bf16.")
    parser.add_argument("--skip", nargs="*", default=[], choices=("whole", "tiles"), help="Ways that aren't measured.")
    parser.add_argument("--folder", help="Folder of temporary files.")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is None and arguments.image in ("noise", "gradient"):
        parser.error("--side is needed where --image isn't a picture")
    return arguments


def differences(output: Tensor, expected: Tensor) -> tuple[str, str]:
    """Return the largest difference and the root of the mean square, as parts of the expected values' range."""
    extent = expected.max() - expected.min()
    difference = (output - expected).div_(extent)
    return f"{difference.abs().max():.1e}", f"{difference.square_().mean().sqrt():.1e}"


def autoencoder_of(arguments: argparse.Namespace) -> Family:
    """Return the model that is measured."""
    torch.manual_seed(0)
    if arguments.vae:
        return load_vae(arguments.vae).family
    return build_autoencoder(ModelConfig(mid_block_add_attention=not arguments.no_attention))


def whole_gib(arguments: argparse.Namespace) -> float:
    """Return what the whole image is expected to take beside the weights."""
    family = autoencoder_of(arguments)
    if not arguments.float32:
        family.to(torch.bfloat16)
    half, cell = ("encoder", 1) if arguments.half == "encode" else ("decoder", family.spatial_factor)
    width, height = (side // cell for side in size_of(arguments, family))
    enable_exact_tiling(family.model, memory_gib=BOUNDLESS)
    return plan_of(family.model, half=half, height=height, width=width).whole_bytes / GIB


def free_gib() -> float:
    """Return the device's memory that may be taken, less a GiB for weights and libraries."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / GIB - 1
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 2**20 - 1


def size_of(arguments: argparse.Namespace, family: Family) -> tuple[int, int]:
    """Return width and height of the image."""
    if arguments.side:
        return arguments.side, arguments.side
    with Image.open(arguments.image) as picture:
        width, height = picture.size
    multiple = family.image_multiple
    return width // multiple * multiple, height // multiple * multiple


def picture_of(arguments: argparse.Namespace, family: Family) -> Tensor:
    """Return the image, [1, C, H, W] in [-1, 1]."""
    side, channels = arguments.side, family.in_channels
    if arguments.image in ("noise", "gradient"):
        noise = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
        if arguments.image == "noise":
            return noise
        return noise.mul_(0.1).add_(torch.linspace(-0.9, 0.9, side)[:, None])
    picture = Image.open(arguments.image).convert("RGB")
    return to_tensor(picture.crop(middle_box(picture.size, cut=size_of(arguments, family))))[None]


def input_of(arguments: argparse.Namespace, model: InferenceAutoencoder) -> Tensor:
    """Return what the measured half takes."""
    family = model.family
    if arguments.half == "encode":
        return picture_of(arguments, family)
    if arguments.image == "noise":
        side = arguments.side // family.spatial_factor
        return torch.randn(1, family.latent_channels, side, side)
    enable_exact_tiling(family.model, memory_gib=2.0, folder=arguments.folder)
    return model.encode(picture_of(arguments, family))[0].cpu()


def measure(arguments: argparse.Namespace) -> None:
    """Run one way, write what it gives, and print its figures."""
    way = arguments.way
    model = InferenceAutoencoder(autoencoder_of(arguments), bf16=not arguments.float32, memory_gib=BOUNDLESS)
    autoencoder: Any = model.family.model
    image = input_of(arguments, model)
    run: Callable[[Tensor], Tensor] = model.decode
    if way == "tiles":
        disable_exact_tiling(autoencoder)
        cut_into_tiles(autoencoder, factor=model.family.spatial_factor)
    else:
        budget = BOUNDLESS if way == "whole" else float(way)
        enable_exact_tiling(autoencoder, memory_gib=budget, folder=arguments.folder, tell=tell)
    if arguments.half == "encode":
        run = own_latents(autoencoder)
    warm = 2 * model.family.spatial_factor if arguments.half == "encode" else 2
    run(image[:, :, :warm, :warm])
    memory = PeakMemory(model.device)
    held, start, wall = memory.current, time.process_time(), time.perf_counter()
    output = run(image).cpu()
    figures = {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall}
    figures["gib"] = (memory.peak - held) / GIB
    torch.save(output, arguments.result)
    print(json.dumps(figures))


def tell(line: str) -> None:
    """Write a plan to stderr."""
    print(line, file=sys.stderr, flush=True)


def own_latents(autoencoder: Any) -> Callable[[Tensor], Tensor]:
    """Return diffusers' own `encode`, to the mean: the only one that makes tiles."""

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        encoded = autoencoder.encode(images.contiguous(memory_format=torch.channels_last))
        latents: Tensor = encoded.latent_dist.mean if "latent_dist" in encoded else encoded[0]
        return latents.float()

    return encode


def cut_into_tiles(autoencoder: Any, *, factor: int) -> None:
    """Have diffusers' tiles of `TILE` pixels, with the overlap that the class has by default."""
    if hasattr(autoencoder, "tile_sample_min_size"):
        autoencoder.tile_sample_min_size = TILE
        autoencoder.tile_latent_min_size = TILE // factor
    autoencoder.enable_tiling()


if __name__ == "__main__":
    main()
