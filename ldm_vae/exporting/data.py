"""The images, or sounds, that an export measures a run's autoencoder on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

from torch import Tensor

from ldm_vae.audio.collection import SoundCollection, open_sounds
from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.data import DataConfig
from ldm_vae.config.rules import require
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.evaluation import EvaluationSamples, evaluation_batches, spread_indices
from ldm_vae.images.request import SourceOptions
from ldm_vae.system.text import short_name
from ldm_vae.training.inputs import sized_for_model
from ldm_vae.training.run_autoencoder import RunAutoencoder

PRECISION_IMAGES = 32
"""Images whose activations are measured, and whose reconstructions in 16-bit types are compared."""


@dataclass(frozen=True, kw_only=True)
class MeasuredData:
    """The images that something is measured on."""

    images: EvaluationSamples
    indices: list[int]
    name: str
    kind: str
    """What the images are to the run: `training images`, `validation images`; empty for images that were named."""


def open_data(run: RunAutoencoder, options: ExportOptions) -> tuple[MeasuredData, MeasuredData]:
    """The images of the scaling, and those of the reconstructions."""
    config = run.config.data

    def data(
        collection: ImageCollection | SoundCollection, *, source: str, kind: str, num_images: int
    ) -> MeasuredData:
        images = sized_for_model(collection, config, family=run.family)
        indices = spread_indices(len(collection), num_images=num_images)
        return MeasuredData(images=images, indices=indices, name=short_name(source), kind=kind)

    if options.data is not None:
        options.check_channels(run.family.in_channels)
        given = _opened(config, options.data, split=options.split, image_column=options.image_column, rules=options)
        scaling = data(given, source=options.data, kind="", num_images=options.num_images)
        return scaling, data(
            given, source=options.data, kind="", num_images=min(options.num_images, config.validation_images)
        )
    require(
        config.train is not None and not config.streaming, "<data>: name images to measure on; the run streams its own"
    )
    assert config.train is not None
    arguments: dict[str, Any] = {"image_column": config.image_column, "rules": config, "recorded": True}
    training = _opened(config, config.train, split=config.split, field="data.train", **arguments)
    kind = "training images"
    scaling = data(training, source=config.train, kind=kind, num_images=options.num_images)
    num_images = min(options.num_images, config.validation_images)
    if config.validation is None:
        return scaling, data(training, source=config.train, kind=kind, num_images=num_images)
    validation = _opened(
        config, config.validation, split=config.validation_split, held_out=True, field="data.validation", **arguments
    )
    kind = "validation images"
    return scaling, data(validation, source=config.validation, kind=kind, num_images=num_images)


def _opened(config: DataConfig, source: str, **options: Unpack[SourceOptions]) -> ImageCollection | SoundCollection:
    """Open images, or sounds where the run is of sounds."""
    return open_collection(source, **options) if config.mel_frames is None else open_sounds(source, **options)


def precision_batches(data: MeasuredData, options: ExportOptions) -> Iterator[Tensor]:
    """Yield the images whose activations are measured, in batches."""
    indices = spread_indices(len(data.indices), num_images=PRECISION_IMAGES)
    batches = evaluation_batches(
        data.images, indices=[data.indices[i] for i in indices], batch_size=options.batch_size, num_workers=0
    )
    for batch in batches:
        if batch.images is not None:
            yield batch.images
