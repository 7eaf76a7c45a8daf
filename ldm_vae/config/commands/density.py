"""Options of `ldm-vae density`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import ReadsImages
from ldm_vae.config.names import Weights
from ldm_vae.config.rules import at_least, local_path, positive, require, source


@dataclass(kw_only=True)
class DensityOptions(ReadsImages):
    """Bound the density that a VAE gives to pictures, in bits per dimension.

    The VAE was trained with a likelihood (loss.likelihood), and with neither a discriminator nor a perceptual
    distance.

    Example: ldm-vae density --vae runs/mine --data photos --output density --resolution 64 --samples 50
    """

    vae: str = local_path()
    """Folder of a run, or of its export."""
    data: str = source()
    """Pictures of 8 bits: a folder of images, a hub id, or parquet or webdataset files."""
    output: str = local_path()
    """Folder for metrics.json, the table, and the figures of each picture."""
    checkpoint: str = "latest"
    """Checkpoint of the run: `latest`, `best` (by validation), or its name."""
    weights: Weights = "ema"
    """Which weights of the run: the averaged ones (`ema`), where it keeps them, or the last ones (`raw`)."""
    samples: int = positive(10)
    """Latents that are drawn for each picture. The bound of importance weights (IWAE) grows with them; 5,000 is
    customary."""
    resolution: Optional[int] = positive(None)
    """Side in pixels that the short side of a picture is resized to, and of the square that is cropped from its
    centre. Without it whole pictures are measured one at a time, each cut to a multiple of the model's factor."""
    num_images: Optional[int] = positive(None)
    """The most pictures to measure, spread over the data. Without it all are measured."""
    batch_size: int = positive(8)
    """Number of latents that are decoded at once where resolution is given."""
    seed: int = at_least(0, 0)
    """Seed of the dequantisation and of the latents, which are functions of it and of the picture's number alone."""
    split: Optional[str] = None
    """Split of the data. Without it `validation`, `test` or `train` is taken, or the only split."""
    overwrite: bool = False
    """Replace earlier figures in the output folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.reads_numbers,
            "<value_range> makes numbers of images, but bits per dimension are those of pictures of 8 bits; leave it "
            "out",
        )
