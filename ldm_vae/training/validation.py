"""Validation on the averaged weights, the same whatever the number of processes, and sample pictures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor

from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from ldm_vae.images.evaluation import EvaluationSamples, evaluation_batches
from ldm_vae.images.streaming import StreamingImages
from ldm_vae.images.training import TrainingSamples
from ldm_vae.images.transforms import to_shown
from ldm_vae.metrics.reconstruction import ReconstructionMetrics, ReconstructionSummary
from ldm_vae.models.exact import within_memory
from ldm_vae.models.families.parts import Reconstruction
from ldm_vae.models.precision import autocast, use_bf16
from ldm_vae.system.cores import count_workers
from ldm_vae.system.files import naming
from ldm_vae.system.pixels import as_pictures
from ldm_vae.training.processes import Processes
from ldm_vae.training.state import BestValidation, TrainingState

NUM_SAMPLES = 8  # originals in a sample grid, each with its reconstruction
MAX_SAMPLE_SIDE = 1024  # in pixels, of each picture in a sample grid
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "perceptual": False}


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # each new shape, such as a short last batch, would be compiled
def validate(
    state: TrainingState,
    dataset: EvaluationSamples,
    *,
    config: Config,
    processes: Processes,
    samples: Path | None = None,
) -> ReconstructionSummary:
    """Reconstruct the validation images from their posterior's mean, with the EMA's weights, and measure the result.

    Process r of P takes the images r, r + P, r + 2P, … Sums are exact in float64, so the images that are left over
    where P doesn't divide their number count like the others.

    Args:
        state: The weights. They are the same afterwards.
        dataset: The images, of which the first data.validation_images are used.
        config: The run's settings.
        processes: The run's processes, which share the images.
        samples: Path of a picture of originals above their reconstructions, which the main process draws.

    Returns:
        The figures over all processes' images.
    """
    train, accelerator, device = config.train, processes.accelerator, processes.accelerator.device
    metrics = ReconstructionMetrics(
        perceptual=state.objective.frozen_networks.get("perceptual"),
        latent_channels=state.family.latent_channels,
        codebook_size=state.family.codebook_size,
        rounded=not dataset.value_range,
        span=dataset.span,
        device=device,
    )
    num_images = min(len(dataset), config.data.validation_images)
    batches = evaluation_batches(
        dataset,
        indices=range(accelerator.process_index, num_images, processes.count),
        batch_size=train.accumulation(num_processes=processes.count)[0] if dataset.has_one_shape else 1,
        num_workers=count_workers(config.data.num_workers),
        timeout_seconds=60 * train.timeout_minutes,
        pin_memory=device.type == "cuda",
    )
    pictures: list[Image.Image] = []
    with averaged_weights(state), within_memory(state.family.model, train.validation_memory_gib):
        for batch in batches:
            if batch.images is None:
                continue
            images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
            made, targets = reconstruct(state, images, train=train), dataset.targets(images)
            metrics.update(targets, made.images, made.mean, made.std, made.indices)
            if samples is not None and accelerator.is_main_process and len(pictures) < 2 * NUM_SAMPLES:
                for pair in zip(targets, made.images, strict=True):
                    pictures += [to_shown(as_pictures(image, dataset.span), config.view) for image in pair]
    sums = {name: total.cpu() for name, total in metrics.state().items()}
    processes.add_up(sums.values(), purpose="to add up a validation")
    metrics.load_state(sums)
    if pictures and samples is not None:
        save_samples(pictures[: 2 * NUM_SAMPLES], samples)
    return metrics.compute()


def reconstruct(
    state: TrainingState, images: Tensor, *, train: TrainConfig, stored: Mapping[str, Tensor] | None = None
) -> Reconstruction:
    """Encode images and decode the posterior's mean, in the precision of the run.

    Args:
        state: The weights. Where their encoder isn't trained, the teacher makes the latents.
        images: [B, C, H, W] in [-1, 1].
        train: The run's settings.
        stored: The teacher's latents of the images, where it is one of stored latents.
    """
    with autocast(images.device, enabled=use_bf16(train.mixed_precision, device=images.device)):
        if state.family.has_encoder:
            return state.family.reconstruct(images)
        assert state.trainable.teacher is not None
        return state.family.decode_mean(state.trainable.teacher.mean_latent(images, stored or {}))


@torch.compiler.set_stance("force_eager")
def draw_samples(
    state: TrainingState,
    dataset: TrainingSamples | StreamingImages,
    path: Path,
    *,
    config: Config,
    accelerator: Accelerator,
) -> None:
    """Draw the run's first crops of full size above their reconstructions; for runs without validation images.

    The main process draws. A stream can't go back to its first crops, so it gets no picture.
    """
    if not accelerator.is_main_process or isinstance(dataset, StreamingImages):
        return
    samples = [dataset[dataset.first_of_full_size + i] for i in range(NUM_SAMPLES)]
    together = len(samples) if len(config.data.sizes) == 1 else 1
    made: list[Tensor] = []
    with averaged_weights(state):
        for batch in (samples[start : start + together] for start in range(0, len(samples), together)):
            images = torch.stack([sample.image for sample in batch]).to(accelerator.device)
            stored = {
                name: torch.stack([sample.stored[name] for sample in batch]).to(accelerator.device)
                for name in batch[0].stored
            }
            made += reconstruct(state, images, train=config.train, stored=stored).images
    targets = [state.trainable.targets(sample.image) for sample in samples]
    pairs = zip(targets, made, strict=True)
    save_samples([to_shown(as_pictures(image, dataset.span), config.view) for pair in pairs for image in pair], path)


@contextlib.contextmanager
def averaged_weights(state: TrainingState) -> Iterator[None]:
    """Put the averaged weights (EMA), where there are any, into the autoencoder while the block runs."""
    if state.ema is None:
        yield
        return
    state.ema.store(state.ema_parameters)
    state.ema.copy_to(state.ema_parameters)
    try:
        yield
    finally:
        state.ema.restore(state.ema_parameters)


def save_samples(pictures: list[Image.Image], path: Path) -> None:
    """Write a grid of pictures with a column for each pair of original and reconstruction.

    Pictures larger than MAX_SAMPLE_SIDE are reduced. Pictures smaller than the largest get a black border.

    Args:
        pictures: Originals and reconstructions in turn.
        path: The PNG to write.
    """
    path.parent.mkdir(exist_ok=True)
    ordered = [_reduced(picture.convert("RGB")) for picture in pictures[0::2] + pictures[1::2]]
    largest = max(picture.width for picture in ordered), max(picture.height for picture in ordered)
    ordered = [_on_canvas(picture, largest) for picture in ordered]
    with naming(path):
        make_image_grid(ordered, rows=2, cols=len(pictures) // 2).save(path)


def _reduced(picture: Image.Image) -> Image.Image:
    if max(picture.size) > MAX_SAMPLE_SIDE:
        picture.thumbnail((MAX_SAMPLE_SIDE, MAX_SAMPLE_SIDE), Image.Resampling.LANCZOS)
    return picture


def _on_canvas(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new("RGB", size)
    canvas.paste(picture)
    return canvas


def best_validation(
    summary: ReconstructionSummary, best: BestValidation | None, *, config: Config, step: int
) -> BestValidation | None:
    """Return the best validation, once the one after `step` updates is known.

    A validation whose value isn't finite is never the best. If train.best_metric has changed, earlier values can't be
    compared, and this validation is the best one.

    Args:
        summary: The figures of this validation.
        best: The best validation before, if there was one.
        config: The run's settings.
        step: Number of updates made.
    """
    metric = config.train.best_metric
    if metric == "auto":
        metric = "psnr" if summary.perceptual is None else "perceptual"
    value = getattr(summary, metric)
    assert value is not None  # Config refuses a best_metric that isn't measured
    if not math.isfinite(value):
        return best
    now = BestValidation(step=step, metric=metric, value=value)
    if best is None or best.metric != metric:
        return now
    improved = value > best.value if HIGHER_IS_BETTER[metric] else value < best.value
    return now if improved else best


def validation_figures(summary: ReconstructionSummary) -> dict[str, float | list[float] | None]:
    """Return a validation's figures by their names in metrics.jsonl."""
    figures: dict[str, float | list[float] | None] = {
        "validation/psnr": summary.psnr,
        "validation/ssim": summary.ssim,
        "validation/perceptual": summary.perceptual,
        "validation/kl": summary.kl,
        "validation/kl_per_channel": summary.latents.channel_kl,
        "validation/active_channels": summary.active_channels,
        "validation/latent_std": summary.latents.std,
        "validation/num_images": summary.num_images,
    }
    if summary.codebook_size is not None:
        figures |= {
            "validation/codebook_usage": summary.codebook_usage,
            "validation/codebook_perplexity": summary.codebook_perplexity,
        }
    return figures
