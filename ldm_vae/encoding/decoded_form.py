"""What becomes of a decoded image: a picture, an array, or the sound that has such mels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from ldm_vae.audio.library import soundfile
from ldm_vae.audio.mels import SAMPLE_RATE
from ldm_vae.audio.vocoding import load_vocoder, to_sound
from ldm_vae.config.commands.decode import DecodeOptions
from ldm_vae.config.rules import require
from ldm_vae.images.bands import out_of_range, range_of
from ldm_vae.images.transforms import to_image
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.models.inference import local_device
from ldm_vae.system.store import Store


class DecodedForm(ABC):
    """How decoded images are written."""

    suffix: ClassVar[str]
    kind: ClassVar[str] = "picture"

    def prepare(self, image: Tensor) -> Tensor:
        """Return what is written of an image [C, H, W]; it is called by one thread."""
        return image

    def write(self, store: Store, name: str, prepared: Tensor) -> None:
        """Write it; several threads may do so."""
        with store.writing(name, sync=False) as temporary:
            self._save(Path(temporary), prepared)

    @abstractmethod
    def _save(self, path: Path, prepared: Tensor) -> None: ...


class Pictures(DecodedForm):
    """PNG of images in [-1, 1]; values outside are clamped."""

    suffix = ".png"

    def _save(self, path: Path, prepared: Tensor) -> None:
        to_image(prepared).save(path, format="PNG")


@dataclass(frozen=True)
class Arrays(DecodedForm):
    """Arrays of rows, columns and channels, float32."""

    value_range: Sequence[float] | None
    """The range whose ends were -1 and 1, beyond which values are clamped; None: values are written as they are."""
    suffix: ClassVar[str] = ".npy"
    kind: ClassVar[str] = "array"

    def _save(self, path: Path, prepared: Tensor) -> None:
        values = prepared.permute(1, 2, 0).numpy()
        if self.value_range is not None:
            values = out_of_range(values, value_range=self.value_range)
        with open(path, "wb") as file:  # a name of its own, for numpy adds .npy to one
            np.save(file, values)


@dataclass(frozen=True)
class Sounds(DecodedForm):
    """WAV of 16 bits of the sounds that have the images for their mels."""

    vocoder: nn.Module | None
    suffix: ClassVar[str] = ".wav"
    kind: ClassVar[str] = "sound"

    def prepare(self, image: Tensor) -> Tensor:
        """Return the sound of mels [1, T, 64]."""
        return to_sound(image, vocoder=self.vocoder)

    def _save(self, path: Path, prepared: Tensor) -> None:
        soundfile().write(path, prepared.numpy(), SAMPLE_RATE, subtype="PCM_16", format="WAV")


def decoded_form(options: DecodeOptions, dataset: LatentDataset, *, channels: int) -> DecodedForm:
    """Return what the channels, what was said of the images when they were encoded, and the options make of an image.

    Raises:
        FieldError: The options ask for what the images aren't.
    """
    preprocessing = dataset.index["preprocessing"]
    is_sound = "mel_frames" in preprocessing
    for name, asked in (("vocoder", options.vocoder is not None), ("format", options.format == "wav")):
        require(
            is_sound or not asked,
            f"<{name}> is {getattr(options, name)}, for sounds; {options.latents} holds latents of images",
        )
    if is_sound:
        return _form_of_sounds(options)
    declared, targets = preprocessing.get("value_range"), options.target_channels
    require(
        all(channel < preprocessing["channels"] for channel in targets) and len(targets) in (0, channels),
        f"<target_channels> is {targets}, but <vae> {options.vae} makes {channels} channels of "
        f"{preprocessing['channels']}",
    )
    declared = None if declared is None else range_of(declared, targets)
    require(
        declared is None or len(declared) in (2, 2 * channels),
        f"<target_channels> is empty; a range was declared for each of {preprocessing['channels']} channels, and "
        f"<vae> {options.vae} makes {channels} of them",
    )
    makes_picture = channels in (1, 3, 4)
    require(
        options.format != "png" or makes_picture,
        f"<format> is png, but <vae> {options.vae} makes {channels} channels, and pictures have 1, 3 or 4; take npy",
    )
    if options.format == "png" or (options.format is None and makes_picture and declared is None):
        return Pictures()
    return Arrays(declared or (-1.0, 1.0))


def _form_of_sounds(options: DecodeOptions) -> DecodedForm:
    require(
        options.format != "png",
        f"<format> is png, but {options.latents} holds latents of sounds; take wav, or npy for their mels",
    )
    require(
        options.vocoder is None or options.format != "npy",
        "<vocoder> makes sounds, and <format> npy writes their mels; leave one of them out",
    )
    if options.format == "npy":
        return Arrays(None)
    return Sounds(None if options.vocoder is None else load_vocoder(options.vocoder).to(local_device()))
