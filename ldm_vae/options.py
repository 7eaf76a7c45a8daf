"""The options of the commands other than `train`: one dataclass a command. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

DType = Literal["float32", "float16", "bfloat16"]


@dataclass(kw_only=True)
class QuickstartOptions:
    """Train a small VAE, export it, encode, decode and evaluate: the whole path, with nothing to download."""

    output: str = "runs/quickstart"
    """Folder for all results."""
    data: Optional[str] = None
    """Images to train on; none: photographs that scikit-image carries."""
    overwrite: bool = False
    """Replace an earlier quickstart in the output folder."""


@dataclass(kw_only=True)
class ExportOptions:
    """Export a run's autoencoder for diffusers, with its latent scaling measured."""

    run: str
    """Folder of the run."""
    output: str
    """Folder (diffusers) or file (ldm) to write."""
    checkpoint: str = "latest"
    """Name of a checkpoint, `latest` or `best`."""
    weights: Literal["ema", "raw"] = "ema"
    """The averaged weights or the last ones."""
    dtype: DType = "float32"
    """Type of the stored weights; float16 is written as diffusers' `fp16` variant."""
    format: Literal["diffusers", "ldm"] = "diffusers"
    """Folder that diffusers loads, or single file for ComfyUI and A1111."""
    data: Optional[str] = None
    """Images to measure the latent scaling on; none: the run's training images."""
    num_images: int = 1000
    """At most so many images are measured, spread over the collection."""
    batch_size: int = 8
    """Images encoded at once."""
    overwrite: bool = False
    """Replace what the output holds."""


@dataclass(kw_only=True)
class EncodeOptions:
    """Encode images into shards of latents, one row an image."""

    vae: str
    """Folder, hub id or single file of the autoencoder."""
    data: str
    """Folder of images, hub id, parquet or webdataset files."""
    output: str
    """Folder of the shards; an interrupted one is finished."""
    split: Optional[str] = None
    """Split of the data; none: `train`, or the only one."""
    image_column: Optional[str] = None
    """Column that holds the images; none: the only image column there is."""
    resolution: int = 256
    """Short side is resized to this and the centre is cropped to a square, in pixels."""
    mode: Literal["moments", "mean", "sample"] = "moments"
    """Store mean and std, the mean alone, or one sample of the posterior."""
    shard_size: int = 1024
    """Images a shard: sample i is in shard i // shard_size."""
    dtype: DType = "float16"
    """Type of the stored latents."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """bf16 convolutions; `auto`: where the hardware has it."""
    batch_size: int = 8
    """Images encoded at once."""
    num_workers: int = 2
    """Decoding processes; 0: in the main process."""
    seed: int = 0
    """Seed of the posterior samples (mode sample)."""
    strict: bool = False
    """Stop at the first unreadable image instead of skipping and listing it."""
    overwrite: bool = False
    """Replace what the output holds."""


@dataclass(kw_only=True)
class DecodeOptions:
    """Decode shards of latents into PNG pictures."""

    vae: str
    """Folder, hub id or single file of the autoencoder."""
    latents: str
    """Folder of latents that `encode` wrote."""
    output: str
    """Folder for the pictures."""
    batch_size: int = 8
    """Latents decoded at once."""
    num_images: Optional[int] = None
    """At most so many; none: all."""
    mixed_precision: Literal["auto", "no", "bf16"] = "no"
    """bf16 convolutions; `auto`: where the hardware has it."""
    overwrite: bool = False
    """Replace what the output holds."""


@dataclass(kw_only=True)
class EvaluateOptions:
    """Measure reconstruction quality of one or several autoencoders, side by side."""

    vae: list[str]
    """Folders, hub ids or single files; give --vae again for each further one."""
    data: str
    """Images to reconstruct."""
    output: str
    """Folder for metrics.json, the table and the picture grid."""
    split: Optional[str] = None
    """Split of the data; none: `validation`, `test`, `train` or the only one."""
    image_column: Optional[str] = None
    """Column that holds the images; none: the only image column there is."""
    resolution: Optional[int] = None
    """Short side is resized to this and the centre is cropped to a square; none: whole pictures, one at a time, cut to
    a multiple of the model's factor."""
    num_images: Optional[int] = None
    """At most so many; none: all."""
    batch_size: int = 8
    """Images at once, with a resolution."""
    num_workers: int = 2
    """Decoding processes; 0: in the main process."""
    perceptual: Literal["auto", "none", "lpips_vgg", "lpips_alex", "lpips_squeeze", "efficientnet_lite0"] = "auto"
    """Perceptual distance; `auto`: LPIPS (vgg) where its weights are, else the offline one."""
    perceptual_weights: Optional[str] = None
    """Local file with the LPIPS trunk's weights."""
    mixed_precision: Literal["auto", "no", "bf16"] = "no"
    """bf16 convolutions; `auto`: where the hardware has it."""
    overwrite: bool = False
    """Replace what the output holds."""


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
