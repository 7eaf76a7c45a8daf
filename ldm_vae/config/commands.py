"""The options of the commands other than `train`: one dataclass a command. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from ldm_vae.config.rules import require

DType = Literal["float32", "float16", "bfloat16"]


def _require_positive(options: object, *names: str) -> None:
    """Raise `ValueError` unless each of these fields is positive or none."""
    for name in names:
        value = getattr(options, name)
        require(value is None or value > 0, f"{name} is {value}; it must be positive")


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
    """Export a run's autoencoder for diffusers, with its latent scaling and its 16-bit headroom measured."""

    run: str
    """Folder of the run."""
    output: str
    """Folder (diffusers) or .safetensors file (ldm) to write."""
    checkpoint: str = "latest"
    """Name of a checkpoint, `latest` or `best`."""
    weights: Literal["ema", "raw"] = "ema"
    """The averaged weights or the last ones."""
    dtype: DType = "float32"
    """Type of the stored weights; float16 is written as diffusers' `fp16` variant."""
    format: Literal["diffusers", "ldm"] = "diffusers"
    """Folder that diffusers loads, or single file for ComfyUI and A1111."""
    target: Literal["sd", "sdxl", "sd3", "flux"] = "sd"
    """Pipelines that are to read the scaling (`--for`): sd3 and flux always get a shift_factor."""
    shift: bool = False
    """Measure a shift_factor for sd and sdxl too; their pipelines ignore it, LatentDataset and encode_images don't."""
    per_channel: bool = False
    """For sdxl with 4 latent channels: normalise each channel, with latents_mean and latents_std."""
    data: Optional[str] = None
    """Images to measure on; none: the run's training images for the scaling, its validation images for the rest."""
    split: Optional[str] = None
    """Split of `data`; none: `train`, or the only one."""
    image_column: Optional[str] = None
    """Column that holds the images of `data`; none: the only image column there is."""
    num_images: int = 1000
    """At most so many images are measured, spread over the collection."""
    batch_size: int = 8
    """Images at once."""
    num_workers: int = 2
    """Decoding processes; 0: in the main process."""
    repair: bool = False
    """Where activations overflow float16, rescale the weights so that they don't, if the reconstruction stays."""
    license: Optional[str] = None
    """Licence for the model card, by the hub's names, such as apache-2.0."""
    push_to_hub: Optional[str] = None
    """Hub id to upload the export to, with the token of `hf auth login` or HF_TOKEN."""
    private: bool = True
    """Make the hub's repository private, where the upload creates it."""
    strict: bool = False
    """Stop at the first unreadable image instead of skipping, counting and listing it."""
    overwrite: bool = False
    """Replace an earlier export in the output."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_images", "batch_size")
        require(self.num_workers >= 0, f"num_workers is {self.num_workers}; it can't be negative")
        require(
            not self.per_channel or self.target == "sdxl",
            f"per_channel is for sdxl, whose pipelines read latents_mean and latents_std; {self.target}'s don't",
        )
        require(
            self.data is not None or (self.split is None and self.image_column is None),
            "split and image_column describe data; without it the run's own settings count",
        )
        require(
            self.push_to_hub is None or self.format == "diffusers",
            "push_to_hub uploads a diffusers folder; export it with format diffusers",
        )


@dataclass(kw_only=True)
class EncodeOptions:
    """Encode images into shards of latents, one row an image; or verify such a folder.

    Any number of processes, on any number of nodes that share the output folder, may run the same command: they divide
    the shards among themselves. An interrupted encode is finished by starting it again, with any number of processes.
    """

    vae: Optional[str] = None
    """Folder, hub id or single file of the autoencoder."""
    data: Optional[str] = None
    """Folder of images, hub id, parquet or webdataset files."""
    output: Optional[str] = None
    """Folder of the shards; an interrupted one is finished."""
    split: Optional[str] = None
    """Split of the data; none: `train`, or the only one."""
    image_column: Optional[str] = None
    """Column that holds the images; none: the only image column there is."""
    streaming: bool = False
    """Read the data as a stream, without a local copy: processes share it by input file, shards follow the input
    files, and sources that changed are not found."""
    resolution: int = 256
    """Short side is resized to this and the centre is cropped to a square, in pixels."""
    buckets: bool = False
    """Keep aspect ratios: each image is resized and cropped to the nearest of a set of sizes with at most resolution²
    pixels, and images are numbered bucket by bucket, so that a shard holds one shape."""
    bucket_step: int = 64
    """Sides of the buckets are multiples of this, in pixels."""
    bucket_max_aspect: float = 2.0
    """Longest side of a bucket over its shortest."""
    mode: Literal["moments", "mean", "sample"] = "moments"
    """Store mean and std, the mean alone, or one sample of the posterior."""
    flip: bool = False
    """Store the mirrored images' latents too, beside the others (`mean_flip` and so on)."""
    shard_size: int = 1024
    """Images a shard: sample i is in shard i // shard_size."""
    dtype: DType = "float16"
    """Type of the stored latents."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """bf16 convolutions; `auto`: where the hardware has it."""
    tile: bool = False
    """Encode each image in overlapping tiles, for images that don't fit in memory; the result isn't the same."""
    batch_size: int = 8
    """Images encoded at once."""
    num_workers: int = 2
    """Decoding processes of each encoding process; 0: in the process itself."""
    seed: int = 0
    """Seed of the posterior samples (mode sample)."""
    detect_changes: Literal["mtime", "digest", "off"] = "mtime"
    """How source files that changed since they were encoded are found, to be encoded again: by size and time of
    change, by SHA-256 (reads every source at each start, and sees into parquet and tar files), or not at all."""
    lease_seconds: float = 120.0
    """A shard of a process that was lost on another node is taken over after so long."""
    strict: bool = False
    """Stop at the first unreadable image instead of skipping and listing it."""
    overwrite: bool = False
    """Replace what the output holds."""
    verify: Optional[str] = None
    """Folder of latents to verify instead of encoding: reports missing, damaged, duplicate and foreign shards."""
    deep: bool = False
    """With verify, and vae and data: encode a random few images again and compare."""

    def __post_init__(self) -> None:
        needed = ("vae", "data") if self.deep else () if self.verify is not None else ("vae", "data", "output")
        for name in needed:
            require(getattr(self, name) is not None, f"--{name} is missing")
        for name in ("resolution", "bucket_step", "shard_size", "batch_size", "lease_seconds"):
            require(getattr(self, name) > 0, f"--{name} is {getattr(self, name)}; it must be positive")
        require(self.bucket_max_aspect >= 1, f"--bucket_max_aspect is {self.bucket_max_aspect}; it can't be below 1")
        require(not self.deep or self.verify is not None, "--deep goes with --verify DIR")
        require(not (self.buckets and self.streaming), "--buckets needs all headers first, so it can't be --streaming")
        require(
            not self.buckets or self.resolution % self.bucket_step == 0,
            f"--bucket_step is {self.bucket_step}, which does not divide --resolution {self.resolution}",
        )
        for name in ("num_workers", "seed"):
            require(getattr(self, name) >= 0, f"--{name} is {getattr(self, name)}; it can't be negative")


@dataclass(kw_only=True)
class LatentsExportOptions:
    """Write a folder of latents in the layout of another trainer."""

    latents: str
    """Folder of latents that `encode` wrote."""
    output: str
    """Folder to write; for kohya the folder of the images, beside which it looks for their latents."""
    layout: Literal["lightningdit", "kohya", "parquet", "webdataset"]
    """Safetensors with labels and statistics for LightningDiT, an .npz an image for sd-scripts, parquet for
    `datasets.load_dataset`, or tar files for webdataset."""
    kohya_model: Literal["sd", "sdxl", "sd3", "flux"] = "sdxl"
    """Kind of model that sd-scripts trains, which names its files."""
    sample: bool = False
    """Write a sample of each posterior instead of its mean (lightningdit and kohya)."""
    seed: int = 0
    """Seed of the samples."""
    overwrite: bool = False
    """Replace an earlier export in the output folder."""


@dataclass(kw_only=True)
class DecodeOptions:
    """Decode shards of latents into PNG pictures, named by their sources."""

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
    tile: bool = False
    """Decode each image in overlapping tiles, for images that don't fit in memory; the result isn't the same."""
    other_vae: bool = False
    """Decode with another autoencoder than the one whose latents these are."""
    overwrite: bool = False
    """Replace an earlier decode in the output folder."""

    def __post_init__(self) -> None:
        require(self.batch_size > 0, f"--batch_size is {self.batch_size}; it must be positive")
        require(
            self.num_images is None or self.num_images > 0, f"--num_images is {self.num_images}; it must be positive"
        )


@dataclass(kw_only=True)
class EvaluateOptions:
    """Measure reconstruction quality of one or several autoencoders, side by side."""

    vae: list[str]
    """Folders, hub ids or single files; give --vae again for each further one."""
    data: str
    """Images to reconstruct."""
    output: str
    """Folder for metrics.json, the table and the picture grids."""
    split: Optional[str] = None
    """Split of the data; none: `validation`, `test`, `train` or the only one."""
    image_column: Optional[str] = None
    """Column that holds the images; none: the only image column there is."""
    resolution: Optional[list[int]] = None
    """Short side is resized to this and the centre is cropped to a square; several sizes are measured one after the
    other. None: whole pictures, one at a time, cut to a multiple of the model's factor."""
    num_images: Optional[int] = None
    """At most so many, spread over the collection; none: all."""
    batch_size: int = 8
    """Images at once, with a resolution."""
    num_workers: int = 2
    """Decoding processes; 0: in the main process."""
    perceptual: Literal["auto", "none", "lpips_vgg", "lpips_alex", "lpips_squeeze", "efficientnet_lite0"] = "auto"
    """Perceptual distance; `auto`: LPIPS (vgg) where its weights are, else the offline one."""
    perceptual_weights: Optional[str] = None
    """Local file with the LPIPS trunk's weights."""
    inception_weights: Optional[str] = None
    """Local file with torch-fidelity's Inception weights, for rFID and rKID; none: torch's cache, and without them a
    KID in the offline network's features."""
    mixed_precision: Literal["auto", "no", "bf16"] = "no"
    """bf16 convolutions; `auto`: where the hardware has it."""
    num_pictures: int = 8
    """Rows of the picture grid; 0: no grid."""
    strict: bool = False
    """Stop at the first unreadable image instead of skipping, counting and listing it."""
    overwrite: bool = False
    """Replace an earlier evaluation in the output folder."""

    def __post_init__(self) -> None:
        require(len(self.vae) > 0, "vae: name at least one autoencoder")
        require(
            self.resolution is None or (len(self.resolution) > 0 and min(self.resolution) > 0),
            f"resolution is {self.resolution}; it must be positive",
        )
        _require_positive(self, "batch_size", "num_images")
        for name in ("num_workers", "num_pictures"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it can't be negative")


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
