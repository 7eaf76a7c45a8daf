"""Options of `ldm-vae convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(kw_only=True)
class ConvertOptions:
    """Convert between a diffusers folder and a single LDM file, by what the input is."""

    input: str
    """Diffusers folder, or single LDM file."""
    output: str
    """File or folder to write."""
    config: Optional[str] = None
    """config.json that says what a foreign LDM file can't."""
    overwrite: bool = False
    """Replace what the output holds."""
