"""Options of `ldm-vae convert`."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_vae.config.commands.shared import ReadsVae
from ldm_vae.config.rules import local_path


@dataclass(kw_only=True)
class ConvertOptions(ReadsVae):
    """Convert a diffusers folder into a single LDM file, or a single LDM file into a diffusers folder.

    Example: ldm-vae convert export vae.safetensors
    """

    input: str = local_path()
    """Diffusers folder or single LDM file to convert."""
    output: str = local_path()
    """File or folder to write."""
    overwrite: bool = False
    """Replace an earlier export in the output."""
