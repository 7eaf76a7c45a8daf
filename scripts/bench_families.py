"""What each model class and bottleneck gives after the same updates: quality, rate, and what diffusion learns of it.

    python scripts/bench_families.py --train PHOTOS --validation OTHERS --output runs/bench-families --updates 1500

FAMILIES are trained small, in float32, on the same crops in the same order, exported, evaluated on `--validation` and
probed on `--train`. The rate is the KL divergence from the prior, or the entropy of the codes, an image pixel; latents
that nothing bounds have none. `--resolution`, `--width` and `--updates` say how small. `--only NAME` trains some of
them, and with `--table` measures these alone. What is done isn't done again, and interrupted trainings and probes go
on: the command may be repeated until it prints the table, which it also writes to table.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_probe import COMMON, hold_to, run

from ldm_vae.models.load import load_vae
from ldm_vae.system.files import write_whole
from ldm_vae.system.markdown import markdown_table

FAMILIES = {
    "KL f8c4": "--model.latent_channels 4",
    "KL f8c16": "--model.latent_channels 16",
    "Flux2 f8c32": "--model.family flux2 --model.latent_channels 32",
    "VQ f8": "--model.family vq --model.latent_channels 4 --model.codebook_size 1024",
    "FSQ f8": "--model.family vq --model.latent_channels 4 --model.bottleneck fsq --model.fsq_levels [8,5,5,5]",
    "DC f32": "--model.family dc --model.init torch --model.attention_levels [4,5]",
    "Tiny distilled": "--model.family tiny --model.init torch --model.layers_per_block 2 --model.teacher TEACHER"
    " --model.teach_encoder true",
}
TEACHER = "KL f8c4"
"""Whose latents the distilled one decodes, and learns to make."""
WIDTHS = {"DC f32": (1, 2, 2, 2, 4, 4), "Tiny distilled": (1, 1, 1, 1)}
"""Channels of each level over `--width`, where they aren't those of RESIDUAL."""
RESIDUAL = (1, 2, 2, 2)
FLOAT32 = ("--mixed_precision", "no")


def folder_name(name: str) -> str:
    """Return what the folders of one of FAMILIES are called, and so the autoencoder in tables."""
    return name.lower().replace(" ", "-")


def training_arguments(name: str, args: argparse.Namespace) -> list[str]:
    """Return the command line of the training of one of FAMILIES."""
    teacher = args.output / "exports" / folder_name(TEACHER)
    flags = FAMILIES[name].replace("--model.teacher TEACHER", f"--model.teacher {shlex.quote(str(teacher))}")
    widths = [args.width * multiple for multiple in WIDTHS.get(name, RESIDUAL)]
    size = ["--model.block_out_channels", str(widths), "--model.norm_num_groups", str(args.width // 2),
            "--data.resolution", str(args.resolution)]  # fmt: skip
    every = str(max(1, args.updates // 10))
    return ["--output_dir", str(args.output / "runs" / folder_name(name)), "--data.train", args.train,
            *shlex.split(f"{COMMON} {flags}"), *size, "--data.num_workers", "1", "--train.mixed_precision", "no",
            "--train.max_train_steps", str(args.updates), "--train.checkpointing_steps", every,
            "--train.checkpoints_total_limit", "1", "--report", "false", "--train.resume_from_checkpoint", "latest",
            *shlex.split(args.options)]  # fmt: skip


def trained(name: str, args: argparse.Namespace) -> Path:
    """Return the export of one of FAMILIES, which is trained and exported unless it is there."""
    export: Path = args.output / "exports" / folder_name(name)
    if not export.exists():
        start = time.monotonic()
        run("train", *training_arguments(name, args))
        folder = str(args.output / "runs" / folder_name(name))
        run("export", "--run", folder, "--output", str(export), "--num_workers", "1", *shlex.split(args.export))
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return export


def evaluated(export: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return an export's figures, of the validation images."""
    output = args.output / "evaluations" / export.name
    if not (output / "metrics.json").exists():
        run("evaluate", "--vae", str(export), "--data", args.validation, "--output", str(output), *FLOAT32,
            "--resolution", str(args.resolution), "--num_workers", "1", *shlex.split(args.evaluate))  # fmt: skip
    figures: dict[str, Any] = json.loads((output / "metrics.json").read_text())["evaluations"][0]["metrics"]
    return figures


def probed(exports: Sequence[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Return what the probe wrote of exports: of all in one call, so that all have equally many tokens."""
    complete = len(exports) == len(FAMILIES)
    output = args.output / ("probe" if complete else f"probe-of-{'-'.join(export.name for export in exports)}")
    if not (output / "metrics.json").exists():
        vaes = [word for export in exports for word in ("--vae", str(export))]
        command = ["probe", *vaes, "--data", args.train, "--output", str(output), *FLOAT32,
                   "--resolution", str(args.resolution), "--num_workers", "1"]  # fmt: skip
        status = subprocess.run([sys.executable, "-m", "ldm_vae", *command, *shlex.split(args.probe)]).returncode
        if not (output / "metrics.json").exists():
            raise SystemExit(status)
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def numbers_a_pixel(export: Path) -> str:
    """Return how many numbers, or codes, of a latent stand for an image pixel."""
    family = load_vae(str(export), needs_scaling=False).family
    codes = family.codebook_size is not None
    return f"1/{family.spatial_factor**2 // (1 if codes else family.latent_channels)}{' codes' if codes else ''}"


def table(exports: Mapping[str, Path], quality: Mapping[str, dict[str, Any]], probe: dict[str, Any]) -> str:
    """Return the table, a row each of FAMILIES that was measured."""
    score = probe["scores"][0]
    entries = {entry["name"]: entry["scores"][score] | {"lost": entry["reconstruction"][score]}
               for entry in probe["autoencoders"]}  # fmt: skip
    perceptual = next(name for name in ("lpips_vgg", "efficientnet_lite0") if name in next(iter(quality.values())))
    rows = [["", "latent numbers a pixel", "PSNR (dB)", f"perceptual ({perceptual})", "rate (bits a pixel)",
             f"probe: {score}", "of reconstructions"]]  # fmt: skip
    for name, export in exports.items():
        figures, probed_as = quality[name], entries[export.name]
        rate = f"{3 * figures['bits_per_dim']['value']:.3f}" if "bits_per_dim" in figures else "none"
        rows.append([name, numbers_a_pixel(export), f"{figures['psnr']['value']:.2f}",
                     f"{figures[perceptual]['value']:.3f}", rate,
                     f"{probed_as['mean']:.4g} ± {probed_as['std']:.2g}", f"{probed_as['lost']:.4g}"])  # fmt: skip
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="photographs to train and to probe by")
    parser.add_argument("--validation", required=True, help="others, to measure on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--resolution", type=int, default=128, help="side in pixels, a multiple of 32, 64 at least")
    parser.add_argument("--width", type=int, default=32, help="channels of the first level, a multiple of 8")
    parser.add_argument("--only", action="append", choices=list(FAMILIES), help="train these now, without the table")
    parser.add_argument("--table", action="store_true", help="make the table of those that --only names")
    parser.add_argument("--options", default="", help="further options of `ldm-vae train`, for all")
    parser.add_argument("--export", default="--num_images 200", help="options of `ldm-vae export`")
    parser.add_argument("--evaluate", default="", help="further options of `ldm-vae evaluate`")
    parser.add_argument("--probe", default="--budget small", help="options of `ldm-vae probe`")
    args = parser.parse_args()

    names = ("train", "updates", "resolution", "width", "options")
    hold_to({name: getattr(args, name) for name in names}, folder=args.output)
    if args.only and "Tiny distilled" in args.only:
        trained(TEACHER, args)
    exports = {name: trained(name, args) for name in FAMILIES if not args.only or name in args.only}
    if args.only and not args.table:
        return
    quality = {name: evaluated(export, args) for name, export in exports.items()}
    written = table(exports, quality, probed([*exports.values()], args))
    write_whole(args.output / "table.md", (written + "\n").encode())
    print(written)


if __name__ == "__main__":
    main()
