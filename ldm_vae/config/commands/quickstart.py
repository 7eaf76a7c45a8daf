"""Options of `ldm-vae quickstart`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.rules import Options, local_path, source


@dataclass(kw_only=True)
class QuickstartOptions(Options):
    """Train a small VAE, export it, encode, decode and evaluate: the whole path, with nothing to download."""

    output: str = local_path("runs/quickstart")
    """Folder for all results."""
    data: Optional[str] = source(None)
    """Images to train on; none: photographs that scikit-image carries."""
    overwrite: bool = False
    """Replace an earlier quickstart in the output folder."""
