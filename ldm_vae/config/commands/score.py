"""Options of `ldm-vae score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import MeasuresPerceptually, ReadsImages, ReadsVae, WritesReport
from ldm_vae.config.names import AnomalyScore, Compressor, MixedPrecision
from ldm_vae.config.rules import at_least, between, local_path, positive, require, source


@dataclass(kw_only=True)
class ScoreOptions(ReadsImages, ReadsVae, MeasuresPerceptually, WritesReport):
    """Tell how unlike normal pictures each picture is, by an autoencoder that was trained on normal ones.

    Example: ldm-vae score --vae export --data parts --normal good_parts --output scores --resolution 128
    """

    vae: str = source()
    """Autoencoder: a diffusers folder, a hub id or a single file, best trained on normal pictures alone."""
    data: str = source()
    """Pictures to score: a folder of images, a hub id, or parquet or webdataset files."""
    normal: str = source()
    """Normal pictures, none of which the autoencoder was trained on. The thresholds and the variance of the likelihood
    come from them."""
    output: str = local_path()
    """Folder for scores.jsonl, metrics.json, the table, the maps, the pictures and the report."""
    resolution: Optional[int] = positive(None)
    """Side in pixels that the short side of a picture is resized to, and of the square that is cropped from its
    centre. Without it whole pictures are scored one at a time, each cut to a multiple of the model's factor."""
    num_images: Optional[int] = positive(None)
    """The most pictures to score, spread over the collection. Without it all are scored."""
    num_normal: Optional[int] = positive(None)
    """The most normal pictures to take, spread over their collection. Without it all are taken."""
    batch_size: int = positive(8)
    """Number of pictures that are scored at once where resolution is given."""
    split: Optional[str] = None
    """Split of the data. Without it `validation`, `test` or `train` is taken, or the only split."""
    normal_split: Optional[str] = None
    """Split of the normal pictures, likewise."""
    quantile: float = between(0, 1, 0.95, ends="()")
    """Part of the normal pictures that lies below each score's threshold."""
    rank_by: AnomalyScore = "auto"
    """Score that the pictures are put in order by, the highest first. `auto` takes `perceptual`, or `pixel` where
    there is no network for it."""
    label_column: Optional[str] = None
    """Column that says whether a picture is normal. Without it the data's classes do, such as the folders that the
    pictures lie in."""
    normal_label: str = "normal"
    """What the column or the folder of normal pictures says. All other labels are anomalies; pictures without one
    don't count in AUROC and AUPRC."""
    peak_window: int = positive(5)
    """Side in pixels of the windows whose mean error is compared for `pixel_peak` and `perceptual_peak`."""
    posterior_samples: int = positive(1)
    """Samples of the posterior that the ELBO's expectation is a mean over."""
    compressor: Compressor = "png"
    """Lossless compressor whose bits `complexity_corrected` takes off."""
    num_maps: int = at_least(0, 64)
    """Pictures of the highest scores whose maps of errors are written, as arrays."""
    num_pictures: int = at_least(0, 16)
    """Pictures of the highest scores that are shown beside their reconstructions and maps."""
    perceptual_channels: list[int] = at_least(0, factory=list)
    """Channels that the network sees and pictures show, counted from 0: one, which is repeated, or three. Without them
    grey is repeated, and RGBA is seen over black and over white."""
    mixed_precision: MixedPrecision = "no"
    """Precision of the convolutions: `no` is float32, `auto` takes bf16 where the hardware has it."""
    memory_gib: Optional[float] = positive(None)
    """The most memory of the device, in GiB beside the weights, that the autoencoder may take. Larger pictures go
    through it strip by strip, with the same result. Without it there is no bound."""
    overwrite: bool = False
    """Replace earlier scores in the output folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.perceptual != "none" or self.rank_by not in ("perceptual", "perceptual_peak"),
            f"<rank_by> is {self.rank_by}, but <perceptual> is none; take another score, or a network",
        )
