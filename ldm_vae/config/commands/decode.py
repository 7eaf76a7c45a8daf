"""Options of `ldm-vae decode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import ReadsVae, RunsAutoencoder
from ldm_vae.config.names import MixedPrecision
from ldm_vae.config.rules import local_path, positive, source


@dataclass(kw_only=True)
class DecodeOptions(ReadsVae, RunsAutoencoder):
    """Decode shards of latents into PNG pictures, named by their sources."""

    vae: str = source()
    """Folder, hub id or single file of the autoencoder."""
    latents: str = local_path()
    """Folder of latents that `encode` wrote."""
    output: str = local_path()
    """Folder for the pictures."""
    batch_size: int = positive(8)
    """Latents decoded at once."""
    num_images: Optional[int] = positive(None)
    """At most so many; none: all."""
    mixed_precision: MixedPrecision = "no"
    """bf16 convolutions; `auto`: where the hardware has it."""
    other_vae: bool = False
    """Decode with another autoencoder than the one whose latents these are."""
    overwrite: bool = False
    """Replace an earlier decode in the output folder."""
