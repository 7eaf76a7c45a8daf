"""Options of `ldm-vae evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ldm_vae.config.commands.shared import ComparesImages, MeasuresPerceptually, RayOptions, ReadsVae, WritesReport
from ldm_vae.config.names import Engine, MixedPrecision
from ldm_vae.config.rules import at_least, local_path, positive, require, source


@dataclass(kw_only=True)
class EvaluateOptions(ComparesImages, ReadsVae, MeasuresPerceptually, WritesReport):
    """Measure the reconstruction quality of one or several autoencoders, side by side.

    Example: ldm-vae evaluate --vae export --vae stabilityai/sd-vae-ft-mse --data photos --output evaluation
    """

    vae: list[str] = source()
    """Autoencoders: diffusers folders, hub ids or single files. Give --vae again for each further one."""
    data: str = source()
    """Images to reconstruct: a folder of images, a hub id, or parquet or webdataset files; with mel_frames, sounds."""
    output: str = local_path()
    """Folder for metrics.json, the table, the picture grids and the report."""
    resolution: Optional[list[int]] = positive(None)
    """Side in pixels that the short side of an image is resized to, and of the square that is cropped from its centre.
    Several sides are measured one after the other. Without it whole pictures are measured one at a time, each cut to a
    multiple of the model's factor."""
    mel_frames: Optional[int] = positive(None)
    """Frames of 10 ms of the mel spectrograms of sounds, in AudioLDM's format: 1024 for 10.24 s. With it `data` names
    a folder or files of sound, of each of which the middle is taken. Without it `data` names images."""
    num_images: Optional[int] = positive(None)
    """The most images to measure, spread over the collection. Without it all are measured."""
    batch_size: int = positive(8)
    """Number of images that are measured at once where resolution is given."""
    split: Optional[str] = None
    """Split of the data. Without it `validation`, `test` or `train` is taken, or the only split."""
    panel: bool = False
    """Measure also how well a diffusion model could learn on the latents, without training one (docs/probe.md)."""
    per_channel: bool = False
    """Measure also each channel of the images by itself: PSNR, and the mean and standard deviation of its values."""
    perceptual_channels: list[int] = at_least(0, factory=list)
    """Channels of reconstructions that networks for photographs see and grids show, counted from 0: one, which is
    repeated, or three. Without them grey is repeated, and RGBA is seen over black and over white."""
    num_pictures: int = at_least(0, 8)
    """Rows of the picture grid. With 0 no grid is drawn."""
    report_pictures: int = at_least(0, 12)
    """Pictures to keep for the report: half of them spread over the images, the others the worst of each autoencoder.
    Of a larger one the middle 768 pixels a side are kept."""
    inception_weights: Optional[str] = local_path(None)
    """Local file with torch-fidelity's Inception weights, for rFID and rKID. Without it they are taken from torch's
    cache; where they are not there either, KID is measured in the features of a network that needs no download."""
    mixed_precision: MixedPrecision = "no"
    """Precision of the convolutions: `no` is float32, `auto` takes bf16 where the hardware has it."""
    memory_gib: Optional[float] = positive(None)
    """The most memory of the device, in GiB beside the weights, that an autoencoder may take. Larger pictures go
    through it strip by strip, with the same result. Without it there is no bound."""
    engine: Engine = "local"
    """Who measures: the processes of this launch (`local`), or the nodes of a Ray cluster (`ray`), with the same
    figures."""
    overwrite: bool = False
    """Replace an earlier evaluation in the output folder."""
    ray: RayOptions = field(default_factory=RayOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.vae) > 0, "<vae> is empty; name at least one autoencoder")
        require(
            not self.panel or bool(self.resolution),
            "<panel> turns and scales square pictures; give it a <resolution>",
        )
        require(
            not (self.panel and self.engine == "ray"),
            "<panel> is not for <engine> ray; give it to a local evaluate",
        )
        said = [name for name, value in (("vae_config", self.vae_config), ("scaling_factor", self.scaling_factor),
                                         ("shift_factor", self.shift_factor)) if value is not None]  # fmt: skip
        require(
            len(self.vae) == 1 or not said,
            f"<{said[0] if said else ''}> describes one autoencoder, but <vae> names {len(self.vae)}; turn a single "
            f"file into a folder first, with `ldm-vae convert`",
        )
        names = ("resolution", "panel", "value_range", "image_column", "perceptual_channels", "target_channels")
        for name, value in (*((each, getattr(self, each)) for each in names), ("engine", self.engine == "ray")):
            require(
                self.mel_frames is None or not value,
                f"<{name}> is for images, but <mel_frames> says that the data are sounds; leave it out",
            )
        require(self.resolution != [], "<resolution> is empty; name a size, or leave it out for whole pictures")
