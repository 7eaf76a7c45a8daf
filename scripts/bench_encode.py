"""Encoding from JPEG files to shards of latents, measured from end to end.

    python scripts/bench_encode.py --data PHOTOS [--vae VAE] [--images 24] [--rounds 3] [--limit_only]

Beside `ldm-vae encode`, in turn and in one run: the same with labels, captions and a digest of every source kept; the
loop that one would write with diffusers (Pillow, `vae.encode` in float32, a batch after the other, `torch.save`); and
the bare encoder on a batch in memory, which is the limit. The precision is what `ldm-vae encode` takes here, or
`--precision`. In bf16 a float32 encode is measured too, and what bf16 does to the latents: the relative error of the
mean against float32, and the PSNR between the pictures decoded from both.
Each line is the median over the rounds, each ratio that of the rounds' ratios.
The encoder's floor is what its convolutions, products and norms would take if each went as fast as the device's
arithmetic or its memory allows; each line says how many times that it takes.
Without --vae, the Stable Diffusion architecture (83.7 M parameters) with random weights is used: its speed is that of
trained weights; its errors need not be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from roofline import Floor, Precision
from torch import Tensor
from torchvision.transforms import functional as transforms

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.config.names import MixedPrecision
from ldm_vae.encoding.encode import encode
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.models.inference import InferenceAutoencoder, local_device
from ldm_vae.models.load import load_vae
from ldm_vae.models.precision import use_bf16


def stable_diffusion_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )


def read(path: Path, *, resolution: int) -> Tensor:
    image = Image.open(path).convert("RGB")
    image = transforms.center_crop(transforms.resize(image, [resolution]), [resolution])
    return transforms.to_tensor(image) * 2 - 1


@torch.no_grad()
def diffusers_loop(autoencoder: AutoencoderKL, paths: list[Path], output: Path, options: argparse.Namespace) -> None:
    """What a user would write."""
    torch.backends.cudnn.allow_tf32 = True  # torch's default, which ours in float32 changes
    means, stds = [], []
    for start in range(0, len(paths), options.batch_size):
        images = torch.stack(
            [read(path, resolution=options.resolution) for path in paths[start:][: options.batch_size]]
        )
        posterior = autoencoder.encode(images.to(autoencoder.device)).latent_dist
        means.append(posterior.mean.cpu())
        stds.append(posterior.std.cpu())
    torch.save({"mean": torch.cat(means), "std": torch.cat(stds)}, output)


def our_encode(
    vae: str,
    folder: Path,
    output: Path,
    options: argparse.Namespace,
    *,
    precision: MixedPrecision,
    detect_changes: str = "mtime",
) -> float:
    """Return the seconds from opened inputs to a whole output."""
    shutil.rmtree(output, ignore_errors=True)
    summary = encode(
        EncodeOptions(
            vae=vae,
            data=str(folder),
            output=str(output),
            resolution=options.resolution,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            shard_size=max(1, options.images // 2),
            mixed_precision=precision,
            detect_changes=detect_changes,  # type: ignore[arg-type]
            jpeg_decoder=options.jpeg_decoder,
        )
    )
    return summary.seconds


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def bf16_errors(vae: str, exact: Path, rounded: Path) -> dict[str, float]:
    """Compare the latents of two outputs, and what they decode to."""
    first, second = (LatentDataset(folder, normalize="none") for folder in (exact, rounded))
    a, b = (torch.stack([dataset[i].latents for i in range(len(dataset))]) for dataset in (first, second))
    decoder = InferenceAutoencoder(load_vae(vae).family, bf16=False)
    squared = [
        ((decoder.decode(x[None]) - decoder.decode(y[None])) / 2).square().mean() for x, y in zip(a, b, strict=True)
    ]
    psnr = -10 * torch.log10(torch.stack(squared)).mean()
    return {"relative_error_of_the_mean": float((a - b).norm() / a.norm()), "psnr_of_decoded_pictures_db": float(psnr)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--vae", help="folder or hub id; none: Stable Diffusion's architecture, random weights")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["auto", "bf16", "float32"], default="auto", help="auto: bf16 if fast")
    parser.add_argument("--jpeg_decoder", choices=["pillow", "nvjpeg"], default="pillow", help="as of ldm-vae encode")
    parser.add_argument("--limit_only", action="store_true", help="leave out diffusers' loop and float32 beside bf16")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        results = measure(Path(directory), options)
    print(f"{'':44}{'s':>8}{'images/s':>10}")
    for name, seconds in results["seconds"].items():
        print(f"{name:44}{seconds:8.2f}{options.images / seconds:10.2f}")
    for name, value in {**results["ratios"], **results["floor"], **results.get("bf16", {})}.items():
        print(f"{name.replace('_', ' '):44}{value:8.3g}")
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


def copy_photos(directory: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Copy so many photographs into a folder, and into another that has captions."""
    paths = sorted(path for path in options.data.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    photos, captioned = directory / "photos", directory / "captioned"
    photos.mkdir()
    for i in range(options.images):
        shutil.copy(paths[i % len(paths)], photos / f"{i:06d}.jpg")
    paths = sorted(photos.iterdir())
    shutil.copytree(photos, captioned)
    rows = [{"file_name": path.name, "text": f"photograph {i}", "label": i} for i, path in enumerate(paths)]
    (captioned / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return photos, captioned


def save_vae(folder: Path) -> str:
    """Write Stable Diffusion's architecture with random weights; return the folder's path."""
    stable_diffusion_vae().save_pretrained(folder)
    return str(folder)


def measure(directory: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    photos, captioned = copy_photos(directory, options)
    paths = sorted(photos.iterdir())
    vae = options.vae or save_vae(directory / "vae")
    bf16 = options.precision == "bf16" or (options.precision == "auto" and use_bf16("auto", device=local_device()))
    precision: Precision = "bf16" if bf16 else "float32"
    chosen: MixedPrecision = "bf16" if bf16 else "no"
    bare = InferenceAutoencoder(load_vae(vae).family, bf16=bf16)
    batches = torch.stack([read(path, resolution=options.resolution) for path in paths]).split(options.batch_size)
    batches = [images.to(bare.device, memory_format=torch.channels_last) for images in batches]
    runs: dict[str, Callable[[], float]] = {
        f"ldm-vae encode, {precision}": lambda: our_encode(
            vae, photos, directory / precision, options, precision=chosen
        ),
        "the same, captions and digests": lambda: our_encode(
            vae, captioned, directory / "all", options, precision=chosen, detect_changes="digest"
        ),
        f"bare {precision} encoder (the limit)": lambda: timed(lambda: [bare.encode(images) for images in batches]),
    }
    if not options.limit_only:
        plain = load_vae(vae).model.to(local_device())
        runs["diffusers loop, float32"] = lambda: timed(
            lambda: diffusers_loop(plain, paths, directory / "out.pt", options)
        )
    if not options.limit_only and bf16:
        runs["ldm-vae encode, float32"] = lambda: our_encode(
            vae, photos, directory / "float32", options, precision="no"
        )
    # Counted at the first call, which also allocates: the second would be counted twice, since a GPU records it.
    floor = Floor.of(lambda: bare.encode(batches[0]), device=bare.device, precision=precision)
    print(f"a batch of {len(batches[0])}: {floor}", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    ours, everything, limit, *beside = seconds.values()
    results = {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratios": {
            "encode_over_the_limit": median_ratio(limit, ours),
            "captions_and_digests_over_encode": median_ratio(ours, everything),
        },
        "floor": against_floor(floor, limit, batches=len(paths) / len(batches[0])),
    }
    if beside:
        results["ratios"]["encode_over_diffusers_loop"] = median_ratio(beside[0], ours)
    if len(beside) == 2:
        results["ratios"]["float32_over_diffusers_loop"] = median_ratio(beside[0], beside[1])
        results["bf16"] = bf16_errors(vae, directory / "float32", directory / "bf16")
    return results


def against_floor(floor: Floor, seconds: list[float], *, batches: float) -> dict[str, float]:
    """The bare encoder beside its floor."""
    compared = floor.compared(statistics.median(seconds) / batches)
    return {f"bare_encoder_{name}": value for name, value in compared.items()}


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """The median over the rounds of their ratio, in which a load that comes and goes cancels."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


if __name__ == "__main__":
    main()
