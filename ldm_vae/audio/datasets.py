"""Mels of a collection of sounds: to train on, and in the collection's own order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm_vae.audio.collection import SoundCollection
from ldm_vae.audio.mels import MEL_RANGE, mels_of
from ldm_vae.config.data import MEL_BINS
from ldm_vae.config.rules import require, require_divides
from ldm_vae.images.evaluation import EvaluationSamples
from ldm_vae.images.guard import SkippedImage
from ldm_vae.images.training import Augmentation, TrainingSample, TrainingSamples
from ldm_vae.system.randomness import sample_rng

if TYPE_CHECKING:
    from ldm_vae.models.families.family import Family


def check_mels(source: str, family: Family, *, frames: int | None = None) -> None:
    """Raise `FieldError` unless an autoencoder, which option `vae` names, takes and makes mels of so many frames."""
    factor = family.image_multiple
    require(
        family.in_channels == family.out_channels == 1 and MEL_BINS % factor == 0,
        f"<vae> {source} is for images of {family.in_channels} channels and factor {factor}; mels are images of 1 "
        f"channel that are {MEL_BINS} wide",
    )
    if frames is not None:
        require_divides(factor, frames, name="mel_frames", whose="the model's factor")


class TrainingSounds(TrainingSamples):
    """Training samples of sounds: mels [1, frames, 64] of a part of each, with `crop` random at a random place.

    Args:
        sounds: The sounds.
        augmentation: Seed, crop and noise; images' own rules don't count.
        frames: Frames of each sample.
    """

    span = MEL_RANGE

    def __init__(self, sounds: SoundCollection, augmentation: Augmentation, *, frames: int) -> None:
        super().__init__(sounds, augmentation)
        self._sounds, self._frames = sounds, frames

    def _sample(self, k: int, index: int, skipped: list[SkippedImage]) -> TrainingSample:
        def start_of(spare: int) -> int:
            if self.augmentation.crop == "center":
                return spare // 2
            rng = sample_rng(k, seed=self.augmentation.seed, stream="crop")
            return int(rng.integers(spare, endpoint=True))

        mels = _read_mels(self._sounds, index, frames=self._frames, start_of=start_of)
        return self.augmentation.sample_of(k, mels, skipped)


class EvaluationSounds(EvaluationSamples):
    """Mels [1, frames, 64] of the middle of each sound.

    Args:
        sounds: The sounds.
        frames: Frames of each sample.
    """

    noun = "sound"
    span = MEL_RANGE

    def __init__(self, sounds: SoundCollection, *, frames: int) -> None:
        super().__init__(sounds, resolution=frames)
        self._sounds, self._frames = sounds, frames

    def _read(self, index: int) -> Tensor:
        return middle_mels(self._sounds, index, frames=self._frames)


def middle_mels(sounds: SoundCollection, index: int, *, frames: int) -> Tensor:
    """Return the mels [1, frames, 64] of the middle of a sound, the same in every process.

    Raises:
        UnreadableSound: It can't be read.
    """
    return _read_mels(sounds, index, frames=frames, start_of=lambda spare: spare // 2)


def _read_mels(sounds: SoundCollection, index: int, *, frames: int, start_of: Callable[[int], int]) -> Tensor:
    """Return mels with one thread, as a data worker has it: the order of sums, and so a bit, may depend on threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return mels_of(sounds.read(index, frames=frames, start_of=start_of), frames=frames)
    finally:
        torch.set_num_threads(threads)
