"""Options of `ldm-vae quickstart`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import WritesReport
from ldm_vae.config.rules import local_path, source


@dataclass(kw_only=True)
class QuickstartOptions(WritesReport):
    """Train a small VAE, export it, encode, decode and evaluate with it, with nothing to download."""

    output: str = local_path("runs/quickstart")
    """Folder for all results."""
    data: Optional[str] = source(None)
    """Images to train on. Without it photographs that scikit-image carries are taken."""
    overwrite: bool = False
    """Replace an earlier quickstart in the output folder."""
