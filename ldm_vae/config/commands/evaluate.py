"""Options of `ldm-vae evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import ReadsImages
from ldm_vae.config.names import MixedPrecision, PerceptualChoice
from ldm_vae.config.rules import require, require_positive


@dataclass(kw_only=True)
class EvaluateOptions(ReadsImages):
    """Measure reconstruction quality of one or several autoencoders, side by side."""

    vae: list[str]
    """Folders, hub ids or single files; give --vae again for each further one."""
    data: str
    """Images to reconstruct."""
    output: str
    """Folder for metrics.json, the table and the picture grids."""
    split: Optional[str] = None
    """Split of the data; none: `validation`, `test`, `train` or the only one."""
    resolution: Optional[list[int]] = None
    """Short side is resized to this and the centre is cropped to a square; several sizes are measured one after the
    other. None: whole pictures, one at a time, cut to a multiple of the model's factor."""
    num_images: Optional[int] = None
    """At most so many, spread over the collection; none: all."""
    batch_size: int = 8
    """Images at once, with a resolution."""
    perceptual: PerceptualChoice = "auto"
    """Perceptual distance; `auto`: LPIPS (vgg) where its weights are, else the offline one."""
    perceptual_weights: Optional[str] = None
    """Local file with the LPIPS trunk's weights."""
    inception_weights: Optional[str] = None
    """Local file with torch-fidelity's Inception weights, for rFID and rKID; none: torch's cache, and without them a
    KID in the offline network's features."""
    mixed_precision: MixedPrecision = "no"
    """bf16 convolutions; `auto`: where the hardware has it."""
    num_pictures: int = 8
    """Rows of the picture grid; 0: no grid."""
    overwrite: bool = False
    """Replace an earlier evaluation in the output folder."""

    def __post_init__(self) -> None:
        require(len(self.vae) > 0, "vae: name at least one autoencoder")
        require(
            self.resolution is None or (len(self.resolution) > 0 and min(self.resolution) > 0),
            f"resolution is {self.resolution}; it must be positive",
        )
        require_positive(self, "batch_size", "num_images")
        for name in ("num_workers", "num_pictures"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it can't be negative")
