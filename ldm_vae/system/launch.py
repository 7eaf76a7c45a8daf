"""The processes that a launcher started."""

from __future__ import annotations

import torch
from accelerate import PartialState


def join_processes() -> PartialState:
    """Return the processes of this launch, joined on the first call; a single one without a launcher."""
    # on machines without an accelerator accelerate has to be told
    return PartialState(cpu=not torch.accelerator.is_available())
