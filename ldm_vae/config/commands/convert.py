"""Options of `ldm-vae convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.rules import Options, local_path


@dataclass(kw_only=True)
class ConvertOptions(Options):
    """Convert between a diffusers folder and a single LDM file, by what the input is."""

    input: str = local_path()
    """Diffusers folder, or single LDM file."""
    output: str = local_path()
    """File or folder to write."""
    config: Optional[str] = local_path(None)
    """A config.json that says what a foreign LDM file can't."""
    overwrite: bool = False
    """Replace what the output holds."""
