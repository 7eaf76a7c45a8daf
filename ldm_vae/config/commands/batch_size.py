"""Options of `ldm-vae find-batch-size`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.rules import positive
from ldm_vae.config.run import Config


@dataclass(kw_only=True)
class FindBatchSizeOptions(Config):
    """Find the largest train.micro_batch_size that this device holds, and what each size up to it takes and gives.

    Takes the settings of a run; data is not read.
    """

    limit_gib: Optional[float] = positive(None)
    """The most memory that may be used, in GiB. Without it, what is free now less a tenth."""
    largest: int = positive(1024)
    """The micro-batch at which to stop."""
