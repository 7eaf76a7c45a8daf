"""What an evaluation compares: autoencoders that take the same images, and these images, or the mels of sounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ldm_vae.audio.collection import SoundCollection, open_sounds
from ldm_vae.audio.datasets import EvaluationSounds, check_mels
from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.rules import require, require_divides
from ldm_vae.config.views import View, view_of
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.evaluation import EvaluationImages, EvaluationSamples
from ldm_vae.models.exact import enable_exact_tiling, tell_plan
from ldm_vae.models.families.family import Family
from ldm_vae.models.load import load_vae


def load_families(options: EvaluateOptions, *, device: torch.device) -> list[Family]:
    """Load the autoencoders onto the device, within the memory that they may take."""
    families = [load_vae(source, needs_scaling=False, **options.vae_arguments).family for source in options.vae]
    for family in families:
        family.to(device, memory_format=torch.channels_last)
        if options.memory_gib is not None and options.engine == "local":
            enable_exact_tiling(family.model, memory_gib=options.memory_gib, tell=tell_plan)
    return families


def check_channels(sources: Sequence[str], families: Sequence[Family], *, targets: Sequence[int]) -> None:
    """Raise `FieldError` unless all autoencoders take and make the same channels, and it is known which.

    Args:
        sources: What the autoencoders were given as.
        families: The autoencoders.
        targets: Channels of the images that reconstructions are compared with; none: all.
    """
    taken, made = families[0].in_channels, families[0].out_channels
    for source, family in zip(sources, families, strict=True):
        require(
            (family.in_channels, family.out_channels) == (taken, made),
            f"<vae>: {sources[0]} takes {taken} image channels and makes {made}, {source} takes {family.in_channels} "
            f"and makes {family.out_channels}; compare them apart",
        )
    require(
        bool(targets) or made == taken,
        f"<target_channels> is empty, but <vae> {sources[0]} makes {made} channels of {taken}; name the {made} "
        f"channels of the images that these are compared with, counted from 0",
    )
    require(
        len(targets) in (0, made) and all(channel < taken for channel in targets),
        f"<target_channels> is {[*targets]}, but <vae> {sources[0]} makes {made} channels of {taken}; name {made} "
        f"from 0 to {taken - 1}",
    )


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The images, or sounds, that are measured."""

    collection: ImageCollection | SoundCollection
    resolutions: list[int | None]
    """Sides of the pictures, in pixels, one after the other; None: whole pictures. Of mels it is their frames."""
    factor: int
    """The largest of the autoencoders' factors."""
    view: View | None
    """What networks for photographs see of reconstructions; None where that isn't chosen."""
    channels: int
    target_channels: Sequence[int]

    @property
    def label(self) -> Callable[[int], int | None] | None:
        """What gives an image's class, by its index; None for sounds."""
        return self.collection.label if isinstance(self.collection, ImageCollection) else None

    def samples(self, resolution: int | None) -> EvaluationSamples:
        """Return all of them at one of the resolutions."""
        if isinstance(self.collection, SoundCollection):
            assert resolution is not None
            return EvaluationSounds(self.collection, frames=resolution)
        return self.images(resolution, multiple_of=self.factor)

    def images(self, resolution: int | None, *, multiple_of: int = 1) -> EvaluationImages:
        """Return all images at one of the resolutions; options refuse sounds where this is asked for."""
        assert isinstance(self.collection, ImageCollection)
        return EvaluationImages(
            self.collection,
            channels=self.channels,
            resolution=resolution,
            multiple_of=multiple_of,
            target_channels=self.target_channels,
        )


def open_evaluated(options: EvaluateOptions, families: Sequence[Family]) -> Evaluated:
    """Open what is measured, once it is known that the autoencoders fit it and each other.

    Raises:
        ValueError: They don't, or there are no images. The message names the option.
    """
    check_channels(options.vae, families, targets=options.target_channels)
    channels, made = families[0].in_channels, families[0].out_channels
    factor = max(family.spatial_factor for family in families)
    options.check_channels(channels)
    if options.mel_frames is not None:
        for source, family in zip(options.vae, families, strict=True):
            check_mels(source, family, frames=options.mel_frames)
        return Evaluated(
            collection=open_sounds(options.data, split=options.split, held_out=True, rules=options),
            resolutions=[options.mel_frames],
            factor=factor,
            view=view_of(made),
            channels=channels,
            target_channels=(),
        )
    for resolution in options.resolution or []:
        require_divides(factor, resolution, name="resolution", whose="the factor")
    return Evaluated(
        collection=open_collection(
            options.data, split=options.split, held_out=True, image_column=options.image_column, rules=options
        ),
        resolutions=[None] if options.resolution is None else [*options.resolution],
        factor=factor,
        view=view_of(
            made,
            chosen=options.perceptual_channels,
            numbers=options.reads_numbers,
            targets=options.target_channels,
        ),
        channels=channels,
        target_channels=tuple(options.target_channels),
    )
