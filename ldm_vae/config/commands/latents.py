"""Options of `ldm-vae latents verify` and `latents export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ldm_vae.config.commands.shared import RayOptions, ReadsVae
from ldm_vae.config.names import Engine, LatentsLayout, PipelineKind
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import Options, at_least, place, require, source


@dataclass(kw_only=True)
class LatentsVerifyOptions(ReadsVae, ReadingRules):
    """Check that a folder of latents is whole: report missing, damaged, duplicate and foreign shards."""

    latents: str = place()
    """Folder of latents that `encode` wrote, or its address."""
    deep: bool = False
    """Encode a few random images again, from `vae` and `data`, and compare the latents."""
    vae: Optional[str] = source(None)
    """Autoencoder that the latents are from: a diffusers folder, a hub id or a single file (with `deep`)."""
    data: Optional[str] = source(None)
    """Images that were encoded (with `deep`)."""
    split: Optional[str] = None
    """Split of the data. Without it `train` is taken, or the only split."""
    image_column: Optional[str] = None
    """Column that holds the images. Without it the only image column of the data is taken."""
    engine: Engine = "local"
    """Who reads the shards: this process (`local`), or the nodes of a Ray cluster (`ray`)."""
    ray: RayOptions = field(default_factory=RayOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vae", "data"):
            require(
                (getattr(self, name) is not None) == self.deep,
                f"<{name}> is missing; <deep> encodes images again" if self.deep else f"<{name}> goes with <deep>",
            )


@dataclass(kw_only=True)
class LatentsExportOptions(Options):
    """Write a folder of latents in the layout of another trainer."""

    latents: str = place()
    """Folder of latents that `encode` wrote, or its address."""
    output: str = place()
    """Folder to write, or an address. For kohya it is the images' folder: sd-scripts looks for latents beside
    images."""
    layout: LatentsLayout
    """What is written: safetensors with labels and statistics for LightningDiT (`lightningdit`), an .npz for each
    image for sd-scripts (`kohya`), parquet for `datasets.load_dataset`, tar files for webdataset, or shards for
    MosaicML's streaming (`mds`)."""
    kohya_model: PipelineKind = "sdxl"
    """Kind of model that sd-scripts trains, which decides how its files are called."""
    sample: bool = False
    """Write a sample of each posterior instead of its mean (lightningdit and kohya)."""
    seed: int = at_least(0, 0)
    """Seed of the samples."""
    overwrite: bool = False
    """Replace an earlier export in the output folder."""
