"""How fast recipes learn: runs them at equal updates and at equal time, over several seeds, and draws what came of it.

    python scripts/speedrun.py --train DIR --validation DIR --output DIR [--runs published:400 fast:400 my.yaml:400]
        [--seeds 0 1 2] [--equal_time] [--sizes 128 256 512 --large DIR]

A run is a recipe and its number of updates. A recipe is one of speedrun_runs.py, a config file or a shipped recipe,
and what differs from it: `fast+train.ema_decay=0.99:400`, where `+gan` stands for the perceptual distance and the GAN,
and `+early` for more than half the updates at half the size first. A run of several stages, each of which starts from
the autoencoder of the one before, is written with commas: `fast:400,fast+gan:400`.

What was done before is kept: finished runs are passed over, interrupted ones go on from their last checkpoint. Writes
results.json (every number) and curves.png (PSNR, SSIM and perceptual distance against updates and against seconds),
and prints a table of each run's last checkpoint: PSNR; the equivariance error of the latents for a rotation by 90°,
the half and three quarters of the side (norm of E(T x) - T E(x) over the norm of T E(x) about its mean); PSNR of
D(z + 0.3 standard deviations of noise); the distance of the latents' spectrum from the images' (as `evaluate --panel`
has it); and the KL divergence, in nats an image element.

Seconds are updates times the mean seconds of an update, which is measured apart, all recipes in turn in one process:
so neither validation nor what else the machine does counts for one recipe and not for another.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from speedrun_report import MEASURES, draw, table
from speedrun_runs import Run, parse_run, recipe_arguments, run_arguments
from torch import nn

from ldm_vae.config.parsing import parse
from ldm_vae.config.run import Config
from ldm_vae.evaluation.features import MeasuringNetworks
from ldm_vae.evaluation.measure import measure_reconstructions
from ldm_vae.evaluation.reading import ImagePass
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.metrics.spectrum import spectrum_distance
from ldm_vae.models.families.family import Family
from ldm_vae.models.interventions import Transform
from ldm_vae.models.precision import use_bf16
from ldm_vae.system.files import write_whole
from ldm_vae.training.perceptual import load_perceptual
from ldm_vae.training.processes import join_processes
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from ldm_vae.training.run_folder import RunFolder, checkpoint_step
from ldm_vae.training.state import build_state
from ldm_vae.training.step import TrainingStep

TRANSFORMS = {"rotated": (1.0, 1), "half": (0.5, 0), "three_quarters": (0.75, 0)}  # scale, quarter turns
DRAWN_UPDATES = 48  # whose draws stand for a run's
NOISE = 0.3  # of the latents' standard deviation
BATCH = 20  # images that are measured at once


def train(run: Run, options: argparse.Namespace) -> None:
    """Train a run to its end, unless it is there."""
    folder = options.output / "runs" / run.name
    checkpoints = RunFolder(folder).checkpoints()
    if not checkpoints or checkpoint_step(checkpoints[-1]) < run.updates:
        print(f"training {run.name}", flush=True)
        subprocess.run([sys.executable, "-m", "ldm_vae", "train", *run_arguments(run, options)], check=True)
    if not (folder / "autoencoder").is_dir():
        load_run_autoencoder(folder, checkpoint="latest", weights="ema").family.model.save_pretrained(
            folder / "autoencoder"
        )


def measure(run: Run, options: argparse.Namespace, *, perceptual: nn.Module) -> dict[str, Any]:
    """Return the quality of the averaged weights of a stage's checkpoints; what was measured before is read.

    It is measured on the validation images at the training resolution, and for the last checkpoint also on the large
    images at `sizes`.
    """
    folder = options.output / "runs" / run.name
    path = folder / "quality.json"
    quality: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"updates": {}, "sizes": {}}
    for checkpoint in RunFolder(folder).checkpoints():
        step = checkpoint_step(checkpoint)
        if "noisy_psnr" in quality["updates"].get(str(step), {}) or (step % options.every and step != run.updates):
            continue
        loaded = load_run_autoencoder(folder, checkpoint=checkpoint.name, weights="ema")
        quality["updates"][str(step)] = _quality(loaded.family, loaded.config, options.validation, perceptual)
        write_whole(path, json.dumps(quality, indent=1).encode())
    for size in options.sizes if options.large else []:
        if str(size) not in quality["sizes"]:
            loaded = load_run_autoencoder(folder, checkpoint="latest", weights="ema")
            quality["sizes"][str(size)] = _quality(loaded.family, loaded.config, options.large, perceptual, size=size)
            write_whole(path, json.dumps(quality, indent=1).encode())
    return quality


def _quality(
    family: Family, config: Config, images: str, perceptual: nn.Module, *, size: int | None = None
) -> dict[str, float]:
    device = Accelerator().device
    dataset = EvaluationImages(
        open_collection(images, held_out=True),
        channels=config.model.in_channels,
        resolution=size or config.data.resolution,
        multiple_of=family.spatial_factor,
    )
    image_pass = ImagePass(
        dataset=dataset,
        indices=range(len(dataset)),
        batch_size=10 if size is None else 1,
        num_workers=0,
        strict=True,
    )
    measured = measure_reconstructions(
        [family.to(device)],
        image_pass,
        networks=MeasuringNetworks(perceptual=perceptual.to(device)),
        bf16=use_bf16(config.train.mixed_precision, device=device),
        num_pictures=0,
    )
    summary = measured.measurements[0].summary
    figures = {name: float(getattr(summary, name)) for name in (*MEASURES, "kl")}
    return figures | (diffusable_figures(family, dataset) if size is None else {})


@torch.no_grad()
def diffusable_figures(family: Family, dataset: EvaluationImages) -> dict[str, float]:
    """Return the latents' equivariance errors, over all images together, PSNR from noisy latents, and spectrum."""
    squared = {name: [0.0, 0.0] for name in TRANSFORMS}
    read = [image for index in range(len(dataset)) if (image := dataset[index].image) is not None]
    assert len(read) == len(dataset), "an image can't be read"
    images = torch.stack(read).to(family.device)
    batches = images.split(BATCH)
    means = [family.encode_moments(x)[0] for x in batches]
    for x, mean in zip(batches, means, strict=True):
        for name, (scale, quarters) in TRANSFORMS.items():
            transform = Transform(
                scale=scale,
                rotation=torch.full((len(x),), quarters, device=x.device),
                mirror=torch.zeros(len(x), dtype=torch.bool, device=x.device),
                factor=family.spatial_factor,
            )
            moved = transform.of_latents(mean)
            of_moved = family.encode_moments(transform.of_images(x))[0]
            about = moved - moved.mean(dim=(2, 3), keepdim=True)
            squared[name][0] += (of_moved - moved).square().sum().item()
            squared[name][1] += about.square().sum().item()
    errors = {name: math.sqrt(difference / size) for name, (difference, size) in squared.items()}

    latents = torch.cat(means)
    rng = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.randn(1, *latents.shape[1:], generator=rng) for _ in latents]).to(latents.device)
    noisy = (latents + NOISE * latents.std() * noise).split(BATCH)
    decoded = torch.cat([family.decode(z).clamp(-1, 1) for z in noisy])
    psnr = -10 * torch.log10((images - decoded).square().mean(dim=(1, 2, 3)) / 4)
    spectrum = spectrum_distance(latents / latents.std(dim=(0, 2, 3), keepdim=True), images / images.std())
    return errors | {"noisy_psnr": psnr.mean().item(), "spectrum": spectrum.mean().item()}


def time_updates(recipes: list[str], *, rounds: int = 15) -> dict[str, float]:
    """Return the mean seconds of an update of each recipe, weighted over its resolutions by their parts of the run.

    At each resolution it is the median, and where updates draw transforms the mean of these over the first updates'
    draws. The recipes take turns, so that a busy machine slows them alike.
    """
    steps, batches, weights = {}, {}, {}
    for recipe in recipes:
        config = parse(Config, recipe_arguments(recipe), prog="speedrun")
        accelerator = join_processes(config).accelerator
        state = build_state(config, accelerator=accelerator)
        if config.train.compiles(accelerator.device.type):
            state.compile_networks()
        steps[recipe] = TrainingStep(
            state, loss_config=config.loss, train_config=config.train, accelerator=accelerator
        )
        micro_batch_size, accumulation = config.train.accumulation(num_processes=1)
        parts = dict(zip(config.data.early_resolutions, config.data.early_fractions, strict=True))
        parts[config.data.resolution] = 1 - sum(config.data.early_fractions)
        drawn = [steps[recipe].rules.of_step(number) for number in range(DRAWN_UPDATES)]
        distinct = [draws for number, draws in enumerate(drawn) if draws not in drawn[:number]]
        for resolution, part in parts.items():
            for number, draws in enumerate(distinct):
                batch = steps[recipe].grey_batch(micro_batch_size, resolution=resolution)
                batch.images.uniform_(-1, 1)
                batch.noise.normal_()
                batch.draws = {name: each for name, each in batch.draws.items() if isinstance(each, torch.Tensor)}
                batch.draws |= draws
                pinned = batch.pin_memory() if accelerator.device.type == "cuda" else batch
                key = (recipe, resolution, number)
                batches[key], weights[key] = [pinned] * accumulation, part * drawn.count(draws) / len(drawn)
    seconds: dict[tuple[str, int, int], list[float]] = {key: [] for key in batches}
    for _ in range(rounds):
        for key in batches:
            start = time.perf_counter()
            steps[key[0]](iter(batches[key]))
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            seconds[key].append(time.perf_counter() - start)
    means = dict.fromkeys(recipes, 0.0)
    for key, taken in seconds.items():
        means[key[0]] += weights[key] * statistics.median(taken[3:])
    return means


def parse_runs(options: argparse.Namespace, seconds: dict[str, float]) -> list[Run]:
    """The runs asked for; for equal time also each recipe for as long as the first run takes."""
    labels = list(options.runs)
    if options.equal_time:
        first, *others = [parse_run(label, seed=0) for label in labels if "," not in label]
        for recipe in dict.fromkeys(run.recipe for run in others if run.recipe != first.recipe):
            labels.append(f"{recipe}:{round(first.updates * seconds[first.recipe] / seconds[recipe])}")
    return [parse_run(label, seed=seed) for seed in options.seeds for label in dict.fromkeys(labels)]


def main() -> None:
    """Train, measure, write and draw; numbers and picture are renewed after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="images to train on")
    parser.add_argument("--validation", required=True, help="images to measure on, none of them trained on")
    parser.add_argument("--output", required=True, type=Path, help="folder for runs, results.json and curves.png")
    parser.add_argument(
        "--runs", nargs="+", default=["published:400", "fast:400"], help="RECIPE[+CHANGE ...]:UPDATES[,next stage]"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--every", type=int, default=100, help="updates between the points of a curve")
    parser.add_argument("--equal_time", action="store_true", help="also each recipe in the first run's time")
    parser.add_argument("--large", help="images with pixels enough for --sizes")
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 256, 512, 768], help="to measure the last at")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    timing = options.output / "seconds.json"
    seconds: dict[str, float] = json.loads(timing.read_text()) if timing.is_file() else {}
    recipes = {stage.recipe: None for label in options.runs for stage in parse_run(label, seed=0).stages}
    if not set(recipes) <= set(seconds):
        seconds |= time_updates(list(recipes))
        write_whole(timing, json.dumps(seconds, indent=1).encode())

    perceptual = load_perceptual("efficientnet_lite0")
    results: dict[str, Any] = {"seconds_per_update": seconds, "runs": []}
    for run in parse_runs(options, seconds):
        stages = []
        for stage in run.stages:
            train(stage, options)
            quality = measure(stage, options, perceptual=perceptual)
            stages.append({"recipe": stage.recipe, "updates": stage.updates, "quality": quality})
        results["runs"].append({"run": run.label, "seed": run.seed, "stages": stages})
        print(table(results), flush=True)
        write_whole(options.output / "results.json", json.dumps(results, indent=1).encode())
        if importlib.util.find_spec("matplotlib") is not None:
            draw(results, options.output / "curves.png")
        else:
            print("curves.png is not drawn, since matplotlib is missing: pip install 'ldm-vae[speedrun]'", flush=True)


if __name__ == "__main__":
    main()
