"""The images of a run: what it trains on, in which batches, and what it validates on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.images.batches import training_batches
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.draws import DrawRules
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.images.streaming import ImageStream, StreamingImages, open_stream
from ldm_vae.images.training import TrainingBatch, TrainingImages
from ldm_vae.system.cores import count_workers
from ldm_vae.training.processes import timeout
from ldm_vae.training.state import TrainingState
from ldm_vae.training.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run trains on and validates on: opened, and not yet prepared for a model."""

    training: ImageCollection | ImageStream
    validation: ImageCollection | None


def open_data(config: Config) -> RunData:
    """Open the images of a run, before any network is built or fetched for them.

    Raises:
        ValueError: There are no images. The message names the field.
    """
    data = config.data
    require(data.train is not None, "<data.train> is missing: name a folder of images, a hub id or files to train on")
    assert data.train is not None
    open_training = open_stream if data.streaming else open_collection
    training = open_training(
        data.train, split=data.split, image_column=data.image_column, field="data.train", rules=data
    )
    if data.validation is None:
        return RunData(training=training, validation=None)
    validation = open_collection(
        data.validation,
        split=data.validation_split,
        held_out=True,
        image_column=data.image_column,
        field="data.validation",
        rules=data,
    )
    return RunData(training=training, validation=validation)


def training_images(
    source: ImageCollection | ImageStream,
    config: Config,
    state: TrainingState,
    *,
    early_stages: Sequence[tuple[int, int]] = (),
) -> TrainingImages | StreamingImages:
    """Return the images to train on, cropped and with their noise.

    Args:
        source: The images, opened.
        config: The run's settings.
        state: The model, whose latents have the shape of the noise.
        early_stages: Early stages as (update, resolution): the side that images have before the update.
    """
    data = config.data
    latent_side = data.resolution // state.family.spatial_factor
    arguments: dict[str, Any] = {
        "seed": config.seed,
        "channels": config.model.in_channels,
        "resolution": data.resolution,
        "latent_shape": (state.family.latent_channels, latent_side, latent_side),
        "early": [(step * config.train.batch_size, resolution) for step, resolution in early_stages],
        "crop": data.crop,
        "min_area": data.crop_min_area,
        "flip": data.flip,
        "draws": DrawRules.of(
            config.loss,
            seed=config.seed,
            batch_size=config.train.batch_size,
            decoder_only=config.model.decoder_only,
        ),
        "strict": data.strict,
    }
    if isinstance(source, ImageStream):
        return StreamingImages(source, shuffle_buffer=data.shuffle_buffer, **arguments)
    return TrainingImages(source, **arguments)


def validation_images(source: ImageCollection | None, config: Config, state: TrainingState) -> EvaluationImages | None:
    """Return the images to validate on, sized for the model; None where there are none."""
    if source is None:
        return None
    data = config.data
    return EvaluationImages(
        source,
        channels=config.model.in_channels,
        resolution=None if data.whole_validation else data.resolution,
        multiple_of=state.family.spatial_factor,
    )


def open_batches(
    images: TrainingImages | StreamingImages,
    config: Config,
    *,
    state: TrainingState,
    accelerator: Accelerator,
    tracking: Tracking,
) -> Iterator[TrainingBatch]:
    """Yield this process's micro-batches from the state's step on, and list the images that can't be read."""
    micro_batch_size, _ = config.train.accumulation(num_processes=accelerator.num_processes)
    batches = training_batches(
        images,
        start_step=state.step,
        batch_size=config.train.batch_size,
        micro_batch_size=micro_batch_size,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=count_workers(config.data.num_workers),
        timeout_seconds=timeout(config).total_seconds(),
        pin_memory=accelerator.device.type == "cuda",
    )
    for batch in batches:
        tracking.skipped(batch.skipped)
        yield batch
