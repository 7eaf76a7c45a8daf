"""A training run, from its config to its last checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from ldm_vae.config import Config, require
from ldm_vae.data.images import EvaluationImages, TrainingBatch, TrainingImages, open_collection, training_batches
from ldm_vae.models.autoencoder import spatial_factor
from ldm_vae.training.checkpoint import (
    checkpoint_name,
    load_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
    weights_digest,
)
from ldm_vae.training.health import Health
from ldm_vae.training.processes import check_ranks_agree, on_main_process, start_accelerator, timeout
from ldm_vae.training.resume import SAMPLES, prepare_run
from ldm_vae.training.signals import StopSignal
from ldm_vae.training.state import TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from ldm_vae.training.tracking import Tracking
from ldm_vae.training.validation import better, figures, validate


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How a run ended."""

    step: int
    checkpoint: Path
    stopped_by: str | None  # the signal's name, where one ended the run early

    def __str__(self) -> str:
        if self.stopped_by:
            return (
                f"Stopped by {self.stopped_by} after {self.step} steps, saved in {self.checkpoint}; go on with "
                f"--train.resume_from_checkpoint latest"
            )
        return f"Trained for {self.step} steps; the last checkpoint is {self.checkpoint}"


def train(config: Config) -> TrainSummary:
    """Train as `config` says, from the start or from a checkpoint.

    Raises:
        ValueError: in one line, for what the config or the data got wrong.
        NonFiniteError: where a row of updates was not finite; the last checkpoint is kept.
    """
    # Set up processes, networks and data.
    run = Path(config.output_dir)
    accelerator = start_accelerator(config)
    state = build_state(config, accelerator=accelerator)
    training_images, validation_images = open_images(config, state)
    step = TrainingStep(state, loss=config.loss, train=config.train, accelerator=accelerator)

    # Resume.
    checkpoint = on_main_process(accelerator, lambda: prepare_run(run, config))
    if checkpoint is not None:
        load_checkpoint(state, checkpoint)
    check_ranks_agree(weights_digest(state), accelerator=accelerator)
    tracking = Tracking(run, config, accelerator=accelerator, step=state.step)
    if checkpoint is not None:
        tracking.say(f"Resumed from {checkpoint}")
    batches = open_batches(training_images, config, state=state, accelerator=accelerator, tracking=tracking)
    health = Health(disc_loss=config.loss.disc_loss, max_nonfinite_steps=config.train.max_nonfinite_steps)
    step.rehearse(resolution=config.data.resolution)

    stopped_by = None
    with (
        StopSignal(num_processes=accelerator.num_processes, timeout=timeout(config)) as stop,
        contextlib.closing(tracking),
    ):
        while state.step < config.train.max_train_steps and not stopped_by:
            # Update generator and discriminator.
            stop.begin()
            step(batches)
            tracking.bar.update()
            stopped_by = stop.agreed()

            # Report.
            if due(state, config, config.train.log_steps):
                reading = state.meter.read()
                tracking.log(reading, learning_rates=state.learning_rates, step=state.step)
                for line in health.lines(reading, step=state.step):
                    tracking.say(line)

            # Validate.
            if validation_images is not None and due(state, config, config.train.validation_steps):
                samples = run / SAMPLES / f"step-{state.step:06d}.png"
                summary = validate(state, validation_images, config=config, accelerator=accelerator, samples=samples)
                tracking.validated(figures(summary), step=state.step)
                state.best = better(summary, state.best, config=config, step=state.step)

            # Save.
            is_best = state.best is not None and state.best.step == state.step
            if stopped_by or is_best or due(state, config, config.train.checkpointing_steps):
                check_ranks_agree(weights_digest(state), accelerator=accelerator)
                on_main_process(accelerator, lambda: save(state, run, limit=config.train.checkpoints_total_limit))
    return TrainSummary(
        step=state.step,
        checkpoint=run / checkpoint_name(state.step),
        stopped_by=stopped_by.name if stopped_by else None,
    )


def due(state: TrainingState, config: Config, every: int) -> bool:
    """Whether something is due after this step: at each multiple of `every`, and at the end."""
    return state.step % every == 0 or state.step == config.train.max_train_steps


def save(state: TrainingState, run: Path, *, limit: int | None) -> None:
    """Write a checkpoint, then remove those over the limit."""
    save_checkpoint(state, run)
    remove_old_checkpoints(run, limit=limit, best=state.best)


def open_images(config: Config, state: TrainingState) -> tuple[TrainingImages, EvaluationImages | None]:
    """The images to train on and those to validate on.

    Raises:
        ValueError: where there are none, naming the field.
    """
    data = config.data
    require(data.train is not None, "data.train is missing: name a folder of images, a hub id or files to train on")
    autoencoder = state.autoencoder
    factor = spatial_factor(autoencoder)
    assert data.train is not None
    training_images = TrainingImages(
        open_collection(data.train, split=data.split, image_column=data.image_column, field="data.train"),
        seed=config.seed,
        channels=config.model.in_channels,
        resolution=data.resolution,
        latent_shape=(autoencoder.config.latent_channels, data.resolution // factor, data.resolution // factor),
        crop=data.crop,
        min_area=data.crop_min_area,
        flip=data.flip,
        strict=data.strict,
    )
    if data.validation is None:
        return training_images, None
    collection = open_collection(
        data.validation,
        split=data.validation_split,
        default_splits=("validation", "val", "test", "train"),
        image_column=data.image_column,
        field="data.validation",
    )
    return training_images, EvaluationImages(
        collection, channels=config.model.in_channels, resolution=data.resolution, multiple_of=factor
    )


def open_batches(
    images: TrainingImages, config: Config, *, state: TrainingState, accelerator: Accelerator, tracking: Tracking
) -> Iterator[TrainingBatch]:
    """This process's micro-batches from the state's step on, unreadable images listed."""
    micro_batch_size, _ = config.train.accumulation(num_processes=accelerator.num_processes)
    batches = training_batches(
        images,
        start_step=state.step,
        batch_size=config.train.batch_size,
        micro_batch_size=micro_batch_size,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=config.data.num_workers,
        timeout_seconds=timeout(config).total_seconds(),
        pin_memory=accelerator.device.type == "cuda",
    )
    for batch in batches:
        tracking.skipped(batch.skipped)
        yield batch
