"""Options that several commands share: each command's dataclass inherits those it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.names import MixedPrecision
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import Options, at_least, positive


@dataclass(kw_only=True)
class ReadsImages(ReadingRules):
    """How a collection of images is read."""

    image_column: Optional[str] = None
    """Column that holds the images. Without it the only image column of the data is taken."""
    num_workers: int = at_least(0, 2)
    """Decoding processes of each process. With 0 a process decodes by itself."""
    strict: bool = False
    """Stop at the first unreadable image instead of skipping, counting and listing it."""


@dataclass(kw_only=True)
class RunsAutoencoder(Options):
    """How an autoencoder is run."""

    mixed_precision: MixedPrecision = "auto"
    """Precision of the convolutions. `auto` takes bf16 where the hardware has it."""
    memory_gib: Optional[float] = positive(None)
    """The most memory of the device, in GiB beside the weights, that an encode or decode may take. Larger images go
    through the network strip by strip, with the same result. Without it there is no bound."""
