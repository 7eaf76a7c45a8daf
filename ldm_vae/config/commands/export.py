"""Options of `ldm-vae export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ldm_vae.config.commands.shared import ReadsImages
from ldm_vae.config.names import DType, FileLayout, PipelineKind, Weights
from ldm_vae.config.rules import local_path, place, positive, require, source


@dataclass(kw_only=True)
class ExportOptions(ReadsImages):
    """Export a run's autoencoder for diffusers, with its latent scaling and its 16-bit headroom measured.

    Example: ldm-vae export --run runs/mine --output export
    """

    run: str = local_path()
    """Folder of the run."""
    output: str = place()
    """Folder (format diffusers) or .safetensors file (format ldm) to write, or its address."""
    checkpoint: str = "latest"
    """Checkpoint to export: `latest`, `best` (by validation), or its name."""
    weights: Weights = "ema"
    """Which weights: the averaged ones (`ema`), where the run keeps them, or the last ones (`raw`)."""
    dtype: DType = "float32"
    """Type of the stored weights. float16 is written as the `fp16` variant of diffusers."""
    format: FileLayout = "diffusers"
    """What is written: a folder that diffusers loads, or a single file (`ldm`) for ComfyUI and A1111."""
    target: PipelineKind = field(default="sd", metadata={"alias": "for"})
    """Pipelines that are to read the scaling (`--for`): sd3 and flux always get a shift_factor."""
    shift: bool = False
    """Measure a shift_factor for sd and sdxl too; their pipelines ignore it, LatentDataset and encode_images don't."""
    per_channel: bool = False
    """For sdxl with 4 latent channels: normalise each channel, with latents_mean and latents_std."""
    data: Optional[str] = source(None)
    """Images to measure on. Without it the scaling is measured on the run's training images, and the rest on its
    validation images."""
    teacher: Optional[str] = source(None)
    """Autoencoder whose latents are decoded to measure a run that trained the decoder alone. Without it that is the
    run's model.teacher; where this names a folder of latents, the autoencoder that they were encoded with has to be
    named."""
    split: Optional[str] = None
    """Split of the data. Without it `train` is taken, or the only split."""
    num_images: int = positive(1000)
    """The most images to measure, spread over the collection."""
    batch_size: int = positive(8)
    """Number of images that are measured at once."""
    repair: bool = False
    """Rescale the weights where activations overflow float16, so that they don't, if the reconstruction stays the
    same."""
    license: Optional[str] = None
    """Licence in the model card, by the hub's name for it, such as apache-2.0."""
    push_to_hub: Optional[str] = None
    """Hub id to upload the export to. The token is that of `hf auth login` or HF_TOKEN."""
    private: bool = True
    """Make the hub's repository private where the upload creates it."""
    overwrite: bool = False
    """Replace an earlier export in the output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.per_channel or self.target == "sdxl",
            f"<per_channel> is for sdxl, whose pipelines read latents_mean and latents_std; {self.target}'s don't",
        )
        require(
            self.data is not None or (self.split is None and self.image_column is None),
            "<split> and <image_column> describe <data>; without it the run's own settings count",
        )
        require(
            self.push_to_hub is None or "://" not in self.output,
            "<push_to_hub> uploads a folder of this machine, and <output> is an address; export into a folder",
        )
        require(
            self.push_to_hub is None or self.format == "diffusers",
            "<push_to_hub> uploads a diffusers folder; export it with <format> diffusers",
        )
