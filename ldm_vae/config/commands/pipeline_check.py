"""Options of `ldm-vae pipeline-check`."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_vae.config.rules import Options, local_path


@dataclass(kw_only=True)
class PipelineCheckOptions(Options):
    """Tell whether a VAE and a pipeline of diffusers fit, by their configs; no weights are read."""

    vae: str = local_path()
    """Folder of the VAE, as `export` writes it."""
    pipeline: str = local_path()
    """Folder of the pipeline, with its model_index.json."""
