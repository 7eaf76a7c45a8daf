"""`ldm-vae sounds`: sounds through an autoencoder and a vocoder, as files to listen to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_vae.audio.collection import SoundCollection, open_sounds
from ldm_vae.audio.datasets import check_mels
from ldm_vae.audio.library import soundfile
from ldm_vae.audio.mels import HOP, MEL_RANGE, SAMPLE_RATE, levelled, mels_of
from ldm_vae.audio.reading import UnreadableSound
from ldm_vae.audio.vocoding import load_vocoder, to_sound
from ldm_vae.config.commands.sounds import SoundsOptions
from ldm_vae.config.rules import require
from ldm_vae.images.evaluation import spread_indices
from ldm_vae.metrics.reconstruction import psnr
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import local_device
from ldm_vae.models.load import load_vae
from ldm_vae.models.precision import exact_float32
from ldm_vae.system.files import naming
from ldm_vae.system.output_kinds import SOUNDS
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.pixels import as_pictures, to_pixels
from ldm_vae.system.progress import progress
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable


@dataclass(kw_only=True)
class SoundsSummary:
    """What was written."""

    output: Path
    decoded: list[dict[str, Any]] = field(default_factory=list)
    """For each sound: its `source`, the names of the `decoded` and the `original` file, and the `psnr` of its mels."""
    skipped: list[dict[str, str]] = field(default_factory=list)
    """For each sound that can't be read: its `source`, and the `reason`."""

    @property
    def psnr(self) -> float:
        """Mean over the sounds of the PSNR of their mels, in dB, as grey pictures that span the range of mels."""
        return sum(line["psnr"] for line in self.decoded) / len(self.decoded)

    def __str__(self) -> str:
        """Return it in one line, or two."""
        number = counted(len(self.decoded), "sound")
        lines = [f"{self.output}: {number}, decoded and original; PSNR of the mels {self.psnr:.2f} dB"]
        if self.skipped:
            first = self.skipped[0]
            which = f"{printable(first['source'])} ({printable(first['reason'])})"
            lines.append(f"{counted(len(self.skipped), 'sound')} skipped; the first: {which}")
        return "\n".join(lines)


def sounds(options: SoundsOptions) -> SoundsSummary:
    """Encode each sound's mels to the posterior's mean, decode it, and write the sound that has these mels.

    Raises:
        ValueError: In one line, naming the option, for what a user can mend.
    """
    output = OutputFolder(options.output, kind=SOUNDS)
    output.check(overwrite=options.overwrite)
    exact_float32()
    collection = open_sounds(options.data, split=options.split, held_out=True, rules=options.reading_rules())
    family = load_vae(options.vae, needs_scaling=False).family.to(local_device())
    check_mels(options.vae, family)
    vocoder = None if options.vocoder is None else load_vocoder(options.vocoder).to(local_device())
    indices = spread_indices(len(collection), num_images=options.num_sounds)
    summary = SoundsSummary(output=output.path)
    with output.whole(overwrite=options.overwrite) as folder:
        with progress(len(indices), what="sounds", unit="sound") as bar:
            for index in indices:
                try:
                    original = _read(collection, index, seconds=options.seconds)
                except UnreadableSound as error:
                    require(not options.strict, str(error))
                    summary.skipped.append({"source": error.name, "reason": error.reason})
                else:
                    decoded, quality = _through(original, family=family, vocoder=vocoder)
                    names = {name: f"{len(summary.decoded):05d}-{name}.wav" for name in ("decoded", "original")}
                    _write(folder / names["decoded"], decoded)
                    _write(folder / names["original"], original)
                    summary.decoded.append({"source": collection.name(index), **names, "psnr": quality})
                bar.update(1)
        require(bool(summary.decoded), f"<data> {options.data}: none of its sounds can be read{_first(summary)}")
        if summary.skipped:
            _write_lines(folder / "skipped.jsonl", summary.skipped)
        _write_lines(folder / SOUNDS.mark, summary.decoded)
    return summary


def _first(summary: SoundsSummary) -> str:
    return f"; the first: {summary.skipped[0]['source']}: {summary.skipped[0]['reason']}" if summary.skipped else ""


def _read(collection: SoundCollection, index: int, *, seconds: float) -> Tensor:
    frames = math.ceil(seconds * SAMPLE_RATE / HOP)
    return levelled(collection.read(index, frames=frames, start_of=lambda spare: spare // 2))


@torch.no_grad()
def _through(sound: Tensor, *, family: Family, vocoder: nn.Module | None) -> tuple[Tensor, float]:
    """Return a sound after encoding and decoding its mels, and their PSNR in dB."""
    factor = family.image_multiple
    frames = max(math.ceil(len(sound) / HOP / factor), 1) * factor
    mels = mels_of(sound, frames=frames)[None].to(family.device)
    reconstruction = family.reconstruct(mels).images
    pixels, reconstructed = (to_pixels(as_pictures(values, MEL_RANGE)) for values in (mels, reconstruction))
    quality = psnr(pixels, reconstructed).item()
    return to_sound(reconstruction[0], vocoder=vocoder)[: len(sound)], quality


def _write(path: Path, sound: Tensor) -> None:
    soundfile().write(path, sound.numpy(), SAMPLE_RATE, subtype="PCM_16")


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    with naming(path):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
