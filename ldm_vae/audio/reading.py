"""Files of sound to samples of one channel at 16 kHz, reading no more of them than is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_vae.audio.library import soundfile, soxr
from ldm_vae.audio.mels import HOP, SAMPLE_RATE, mels_of
from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.guard import UnreadableImage, open_regular
from ldm_vae.system.text import one_line, printable
from ldm_vae.system.watch import at_work, refusal


class UnreadableSound(UnreadableImage):
    """A sound that can't be read: `name` says which, `reason` why, in one line."""

    def __str__(self) -> str:
        return f"the sound {printable(self.name)} can't be read: {self.reason}"


def read_mels(path: str | Path, *, frames: int) -> Tensor:
    """Return the mels [1, frames, 64] of the middle of a sound, float32.

    Args:
        path: A file of sound, of any rate and number of channels.
        frames: Frames of 10 ms. Behind a shorter sound there is silence.

    Raises:
        UnreadableSound: The file is missing, damaged or no sound.
    """
    return mels_of(read_part(path, frames=frames, start_of=lambda spare: spare // 2), frames=frames)


def read_part(
    path: str | Path,
    *,
    frames: int,
    start_of: Callable[[int], int],
    name: str | None = None,
    rules: ReadingRules | None = None,
) -> Tensor:
    """Return a part of a sound, mixed to one channel at 16 kHz.

    Args:
        path: The file.
        frames: Length of the part in frames of 160 samples at 16 kHz.
        start_of: Gives the part's first sample, at the file's own rate, from the largest that there may be. It isn't
            asked where the whole sound fits.
        name: What errors call the file; by default the path.
        rules: What decoding may cost.

    Returns:
        [160·frames] or, where the whole sound is shorter than that, all of it; float32.

    Raises:
        UnreadableSound: The file is missing, damaged or no sound.
    """
    name, rules = name or str(path), rules or ReadingRules()
    refused = refusal(name)
    if refused is not None:
        raise UnreadableSound(name, refused)
    library = soundfile()
    try:
        with (
            at_work(name, seconds=rules.max_decode_seconds),
            open_regular(path) as file,
            library.SoundFile(file.fileno(), closefd=False) as sound,
        ):
            part = _decode(sound, frames=frames, start_of=start_of)
            resampled = soxr().resample(part, sound.samplerate, SAMPLE_RATE, quality="HQ")
            return torch.from_numpy(resampled[: HOP * frames])
    except (library.SoundFileError, OSError, ValueError, RuntimeError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise UnreadableSound(name, reason) from error


def _decode(sound: Any, *, frames: int, start_of: Callable[[int], int]) -> np.ndarray:
    """Return the samples of a part, mixed to one channel, at the file's own rate."""
    wanted = math.ceil(frames * HOP * sound.samplerate / SAMPLE_RATE)
    spare = sound.frames - wanted
    if spare > 0:
        sound.seek(start_of(spare))
    samples: np.ndarray = sound.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
    if len(samples) == 0:
        raise ValueError("it holds no samples")
    if not np.isfinite(samples).all():
        raise ValueError("it holds samples that are not finite")
    return samples
