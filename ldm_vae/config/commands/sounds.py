"""Options of `ldm-vae sounds`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import Options, local_path, positive, source


@dataclass(kw_only=True)
class SoundsOptions(Options):
    """Encode sounds with an autoencoder of mel spectrograms and decode them again, as WAV files to listen to.

    Example: ldm-vae sounds --vae export --data sounds --output decoded
    """

    vae: str = source()
    """Autoencoder of images of one channel, trained on mels: a diffusers folder, a hub id or a single file."""
    data: str = local_path()
    """Sounds: a folder of files, a file or a glob."""
    output: str = local_path()
    """Folder for the WAV files: each sound as the autoencoder gives it again, and the original beside it, at the same
    level and rate."""
    vocoder: Optional[str] = source(None)
    """Vocoder of transformers' class SpeechT5HifiGan, by its folder, a pipeline's folder or a hub id. Without it
    Griffin-Lim makes the sounds, which needs no weights and sounds like it."""
    seconds: float = positive(10.24)
    """The most seconds of each sound; of longer ones the middle is taken."""
    num_sounds: Optional[int] = positive(None)
    """The most sounds, spread over the collection. Without it all are taken."""
    split: Optional[str] = None
    """Split of the data. Without it `validation`, `test` or `train` is taken, or the only split."""
    strict: bool = False
    """Stop at the first unreadable sound instead of skipping, counting and listing it."""
    max_decode_seconds: float = positive(60.0)
    """Most seconds of a processor that decoding a sound may take. Slower ones are skipped."""
    overwrite: bool = False
    """Replace what an earlier one wrote into the output folder."""

    def reading_rules(self) -> ReadingRules:
        """Return what decoding may cost."""
        return ReadingRules(max_decode_seconds=self.max_decode_seconds)
