"""Options of `ldm-vae decode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import ReadsVae, RunsAutoencoder
from ldm_vae.config.names import DecodedFormat, MixedPrecision
from ldm_vae.config.rules import at_least, place, positive, source


@dataclass(kw_only=True)
class DecodeOptions(ReadsVae, RunsAutoencoder):
    """Decode shards of latents into pictures, named by their sources.

    Example: ldm-vae decode --vae export --latents latents --output pictures
    """

    vae: str = source()
    """Autoencoder: a diffusers folder, a hub id or a single file."""
    latents: str = place()
    """Folder of latents that `encode` wrote, or its address."""
    output: str = place()
    """Folder for the pictures, or an address."""
    batch_size: int = positive(8)
    """Number of latents that are decoded at once."""
    num_images: Optional[int] = positive(None)
    """The most latents to decode. Without it all are decoded."""
    format: Optional[DecodedFormat] = None
    """What is written of an image: a picture of 8 bits (`png`, for 1, 3 or 4 channels), or an array of rows, columns
    and channels (`npy`, float32, in the range that was declared for the images), or, of latents of sounds, the sound
    (`wav`) or its mels (`npy`). Without it arrays are written where a range was declared, or the channels make no
    picture, and sounds of latents of sounds."""
    vocoder: Optional[str] = source(None)
    """Vocoder of transformers' class SpeechT5HifiGan for latents of sounds, by its folder, a pipeline's folder or a
    hub id. Without it Griffin-Lim makes the sounds."""
    target_channels: list[int] = at_least(0, factory=list)
    """Channels of the images, counted from 0, that the autoencoder makes, in its order: needed where it makes others
    than it takes and a range was declared for each channel in turn."""
    mixed_precision: MixedPrecision = "no"
    """Precision of the convolutions: `no` is float32, `auto` takes bf16 where the hardware has it."""
    other_vae: bool = False
    """Decode even where the latents are from another autoencoder. A decoder that was distilled alone, whose latents
    always are, gets them as its teacher's pipelines normalise them."""
    overwrite: bool = False
    """Replace an earlier decode in the output folder."""
