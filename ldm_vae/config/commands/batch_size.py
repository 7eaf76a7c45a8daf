"""Options of `ldm-vae find-batch-size`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.rules import positive
from ldm_vae.config.run import Config


@dataclass(kw_only=True)
class FindBatchSizeOptions(Config):
    """Find the largest train.micro_batch_size that fits into this device's memory.

    Prints the memory and the images a second of each size that was tried. Takes the settings of a run; no data is
    read.
    """

    limit_gib: Optional[float] = positive(None)
    """The most memory that may be used, in GiB. Without it nine tenths of what is free now are."""
    largest: int = positive(1024)
    """The largest micro-batch to try."""
