"""Options of `ldm-vae evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import ReadsImages
from ldm_vae.config.names import MixedPrecision, PerceptualChoice
from ldm_vae.config.rules import at_least, local_path, positive, require, source


@dataclass(kw_only=True)
class EvaluateOptions(ReadsImages):
    """Measure reconstruction quality of one or several autoencoders, side by side."""

    vae: list[str] = source()
    """Folders, hub ids or single files; give --vae again for each further one."""
    data: str = source()
    """Images to reconstruct."""
    output: str = local_path()
    """Folder for metrics.json, the table and the picture grids."""
    split: Optional[str] = None
    """Split of the data; none: `validation`, `test`, `train` or the only one."""
    resolution: Optional[list[int]] = positive(None)
    """Short side is resized to this and the centre is cropped to a square; several sizes are measured one after the
    other. None: whole pictures, one at a time, cut to a multiple of the model's factor."""
    num_images: Optional[int] = positive(None)
    """At most so many, spread over the collection; none: all."""
    batch_size: int = positive(8)
    """Images at once, with a resolution."""
    perceptual: PerceptualChoice = "auto"
    """Perceptual distance; `auto`: LPIPS (vgg) where its weights are, else the offline one."""
    perceptual_weights: Optional[str] = local_path(None)
    """Local file with the LPIPS trunk's weights."""
    inception_weights: Optional[str] = local_path(None)
    """Local file with torch-fidelity's Inception weights, for rFID and rKID; none: torch's cache, and without them a
    KID in the offline network's features."""
    mixed_precision: MixedPrecision = "no"
    """bf16 convolutions; `auto`: where the hardware has it."""
    memory_gib: Optional[float] = positive(None)
    """The most memory of the device, in GiB beside the weights, that an autoencoder may take. Larger pictures go
    through it strip by strip, with the same result. Without it there is no bound."""
    num_pictures: int = at_least(0, 8)
    """Rows of the picture grid; 0: no grid."""
    panel: bool = False
    """Measure too how well a diffusion model could learn on the latents, without training one (docs/probe.md)."""
    overwrite: bool = False
    """Replace an earlier evaluation in the output folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.vae) > 0, "<vae> is empty; name at least one autoencoder")
        require(
            not self.panel or bool(self.resolution),
            "<panel> turns and scales square pictures; give it a <resolution>",
        )
        require(self.resolution != [], "<resolution> is empty; name a size, or leave it out for whole pictures")
