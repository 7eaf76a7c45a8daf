"""Options of `ldm-vae quickstart`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import WritesReport
from ldm_vae.config.rules import local_path, require, source


@dataclass(kw_only=True)
class QuickstartOptions(WritesReport):
    """Train a small VAE, export it, encode, decode and evaluate with it, with nothing to download."""

    output: str = local_path("runs/quickstart")
    """Folder for all results."""
    data: Optional[str] = source(None)
    """Images to train on. Without it photographs that scikit-image carries are taken."""
    resume: bool = False
    """Go on with the quickstart that a signal stopped in the output folder."""
    overwrite: bool = False
    """Replace an earlier quickstart in the output folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.resume and self.overwrite), "<resume> goes on with what <overwrite> removes; take one of them"
        )
