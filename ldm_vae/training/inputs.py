"""The images of a run: what it trains on, in which batches, and what it validates on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from ldm_vae.audio.collection import SoundCollection, open_sounds
from ldm_vae.audio.datasets import EvaluationSounds, TrainingSounds
from ldm_vae.config.data import DataConfig
from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.images.batches import training_batches
from ldm_vae.images.buckets import Buckets, nearest_bucket
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.draws import DrawRules
from ldm_vae.images.evaluation import EvaluationImages, EvaluationSamples
from ldm_vae.images.headers import picture_sizes
from ldm_vae.images.stream_files import FileRules
from ldm_vae.images.streaming import ImageStream, StreamingImages, open_stream
from ldm_vae.images.training import Augmentation, TrainingBatch, TrainingImages, TrainingSamples
from ldm_vae.models.families.family import Family
from ldm_vae.system.cores import count_workers
from ldm_vae.system.progress import progress
from ldm_vae.system.telling import tell
from ldm_vae.training.processes import Processes, timeout
from ldm_vae.training.state import TrainingState
from ldm_vae.training.teaching import TaughtImages, is_stored_teacher
from ldm_vae.training.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run trains on and validates on: opened, and not yet prepared for a model."""

    training: ImageCollection | ImageStream | SoundCollection
    validation: ImageCollection | SoundCollection | None


def open_data(config: Config) -> RunData:
    """Open the images of a run, before any network is built or fetched for them.

    Raises:
        ValueError: There are no images. The message names the field.
    """
    data = config.data
    require(data.train is not None, "<data.train> is missing: name a folder of images, a hub id or files to train on")
    assert data.train is not None
    if data.mel_frames is not None:
        return _open_sounds(data)
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


def _open_sounds(data: DataConfig) -> RunData:
    assert data.train is not None
    training = open_sounds(data.train, split=data.split, field="data.train", rules=data)
    if data.validation is None:
        return RunData(training=training, validation=None)
    validation = open_sounds(
        data.validation, split=data.validation_split, held_out=True, field="data.validation", rules=data
    )
    return RunData(training=training, validation=validation)


def training_images(
    source: ImageCollection | ImageStream | SoundCollection,
    config: Config,
    state: TrainingState,
    *,
    processes: Processes,
    early_stages: Sequence[tuple[int, int]] = (),
) -> TrainingSamples | StreamingImages:
    """Return the images to train on, cropped and with their noise.

    Args:
        source: The images, opened.
        config: The run's settings.
        state: The model, whose latents have the shape of the noise.
        early_stages: Early stages as (update, resolution): the side that images have before the update.
        processes: The run's processes, which share in reading the images' sizes where there are buckets.
    """
    data = config.data
    augmentation = Augmentation(
        seed=config.seed,
        channels=config.model.in_channels,
        resolution=data.resolution,
        early=[(step * config.train.batch_size, resolution) for step, resolution in early_stages],
        crop=data.crop,
        min_area=data.crop_min_area,
        flip=data.flip,
        latent_channels=state.family.latent_channels,
        spatial_factor=state.family.spatial_factor,
        buckets=_buckets(source, config, processes=processes) if data.buckets else None,
        draws=DrawRules.of(
            config.loss,
            seed=config.seed,
            batch_size=config.train.batch_size,
            decoder_only=config.model.decoder_only,
        ),
        strict=data.strict,
    )
    teacher = config.model.teacher
    if teacher is not None and is_stored_teacher(teacher):
        return TaughtImages(source, augmentation, latents=teacher, data=data)
    if isinstance(source, SoundCollection):
        assert data.mel_frames is not None
        return TrainingSounds(source, augmentation, frames=data.mel_frames)
    if isinstance(source, ImageStream):
        rules = FileRules(dead_files=data.dead_files, timeout_seconds=data.file_timeout)
        return StreamingImages(source, augmentation, shuffle_buffer=data.shuffle_buffer, rules=rules)
    return TrainingImages(source, augmentation)


def _buckets(source: object, config: Config, *, processes: Processes) -> Buckets:
    """Return the run's buckets, with the images in each; headers are read where there are several."""
    sizes, members = config.data.sizes, None
    if len(sizes) > 1:
        assert isinstance(source, ImageCollection)
        chosen = _nearest_of_all(source, config, processes=processes)
        members = [np.flatnonzero(chosen == number) for number in range(len(sizes))]
        counts = ", ".join(f"{w}x{h} {len(images):,}" for (w, h), images in zip(sizes, members, strict=True))
        if processes.accelerator.is_main_process:
            tell(f"data.train: images by the nearest of data.buckets: {counts}")
    return Buckets(sizes, members=members, seed=config.seed, batch_size=config.train.batch_size)


def _nearest_of_all(collection: ImageCollection, config: Config, *, processes: Processes) -> np.ndarray:
    """Return the number of each image's bucket, or of the one nearest to a square where its header can't be read.

    Each process reads its part of the headers.
    """
    sizes, accelerator = config.data.sizes, processes.accelerator
    mine = range(accelerator.process_index, len(collection), processes.count)
    numbers = {size: number for number, size in enumerate(sizes)}
    found = torch.zeros(len(collection), dtype=torch.int32)
    seen = picture_sizes(
        collection,
        mine,
        channels=config.model.in_channels,
        num_workers=count_workers(config.data.num_workers),
        timeout_seconds=timeout(config).total_seconds(),
    )
    with progress(len(mine), what="image sizes", unit="img", show=accelerator.is_main_process, leave=False) as bar:
        for image, size in zip(mine, seen, strict=True):
            found[image] = numbers[nearest_bucket(size or (1, 1), sizes=sizes)]
            bar.update()
    processes.add_up([found], purpose="to read the images' sizes")
    return found.numpy()


def validation_images(
    source: ImageCollection | SoundCollection | None, config: Config, state: TrainingState
) -> EvaluationSamples | None:
    """Return the images to validate on, sized for the model; None where there are none."""
    if source is None:
        return None
    teacher = config.model.teacher
    require(
        teacher is None or state.family.has_encoder or not is_stored_teacher(teacher),
        f"<data.validation>: the encoder isn't trained, and <model.teacher> {teacher} holds latents of <data.train> "
        f"alone; leave it out, name the autoencoder as the teacher, or set <model.teach_encoder> to true",
    )
    return sized_for_model(source, config.data, family=state.family, whole=config.data.whole_validation)


def sized_for_model(
    collection: ImageCollection | SoundCollection, data: DataConfig, *, family: Family, whole: bool = False
) -> EvaluationSamples:
    """Return images, or sounds, as a run's model is measured on them: in the run's shapes, or `whole`."""
    if isinstance(collection, SoundCollection):
        assert data.mel_frames is not None
        return EvaluationSounds(collection, frames=data.mel_frames)
    return EvaluationImages(
        collection,
        channels=family.in_channels,
        multiple_of=family.spatial_factor,
        target_channels=data.target_channels,
        **({"resolution": None} if whole else data.shapes),
    )


def open_batches(
    images: TrainingSamples | StreamingImages,
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
