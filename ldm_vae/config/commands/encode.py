"""Options of `ldm-vae encode`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ldm_vae.config.commands.shared import RayOptions, ReadsImages, ReadsVae, RunsAutoencoder
from ldm_vae.config.names import BucketSet, DetectChanges, DType, EncodeLayout, Engine, JpegDecoder, LatentsMode
from ldm_vae.config.rules import at_least, place, positive, require, require_divides, source


@dataclass(kw_only=True)
class EncodeOptions(ReadsImages, ReadsVae, RunsAutoencoder):
    """Encode images into shards of latents, with one row for each image.

    Any number of processes, on any number of nodes that share the output folder, may run the same command: they divide
    the shards among themselves. An interrupted encode is finished by starting it again, with any number of processes.

    Example: ldm-vae encode --vae export --data photos --output latents --flip
    """

    vae: str = source()
    """Autoencoder: a diffusers folder, a hub id or a single file; folders and files may be at an address."""
    data: str = source()
    """Images to encode: a folder of images, a hub id, or parquet or webdataset files; with mel_frames, sounds."""
    output: str = place()
    """Folder for the shards, or an address: s3://, gs://, az:// or hf://. An interrupted encode into it is
    finished."""
    resolution: int = positive(256)
    """Side in pixels that the short side of an image is resized to, and of the square that is cropped from its
    centre."""
    mel_frames: Optional[int] = positive(None)
    """Frames of 10 ms of the mel spectrograms of sounds, in AudioLDM's format: 1024 for 10.24 s. With it `data` names
    a folder or files of sound, of each of which the middle is encoded. Without it `data` names images."""
    crops: int = positive(1)
    """Squares of each image, as rows that follow each other: with 1 the one in its centre, with more as many that are
    spread evenly along its long side, from one end to the other. Of a square image all are the same."""
    batch_size: int = positive(8)
    """Number of images that are encoded at once."""
    mode: Optional[LatentsMode] = None
    """What is stored of an image: mean and standard deviation of the posterior (`moments`), the mean alone, a sample,
    or numbers of codes (`indices`). Without it moments are stored where the autoencoder has a posterior, indices where
    it has a codebook, and otherwise the latents, which are their own mean."""
    flip: bool = False
    """Store the latents of the mirrored images too, beside the others (`mean_flip` and so on)."""
    dtype: DType = "float16"
    """Type of the stored latents. Numbers of codes take the smallest type of integers that holds them."""
    shard_size: int = positive(1024)
    """Images of each shard: image i is in shard i // shard_size."""
    layout: EncodeLayout = "safetensors"
    """What the shards are: safetensors that this program reads, with an index (`safetensors`), or at once the files of
    another trainer, as `latents export` writes them: for MosaicML's streaming (`mds`), for `datasets.load_dataset`
    (`parquet`), tar files for webdataset, or safetensors for LightningDiT (`lightningdit`, with `flip`). What encode
    keeps beside the files of another trainer begins with `.ldm-vae-encode-`."""
    split: Optional[str] = None
    """Split of the data. Without it `train` is taken, or the only split."""
    streaming: bool = False
    """Read the data as a stream, without a local copy. Processes share the stream by input file, shards follow the
    input files, and sources that changed are not noticed."""
    buckets: bool = False
    """Keep aspect ratios: each image is resized and cropped to the nearest of a set of sizes with at most resolution²
    pixels. Images are numbered bucket by bucket, so that a shard holds one shape."""
    bucket_set: BucketSet = "area"
    """Which sizes there are, and which is nearest: `area` takes all sizes that use the area well, and compares aspect
    ratios by their quotient; `sd_scripts` does both as kohya's sd-scripts, so that `latents export --layout kohya` can
    write them."""
    bucket_step: int = positive(64)
    """Number of pixels that the sides of the buckets are multiples of."""
    bucket_max_aspect: float = at_least(1, 2.0)
    """Largest quotient of a bucket's sides (bucket_set area)."""
    min_bucket_reso: int = positive(256)
    """Shortest side of a bucket, in pixels (bucket_set sd_scripts)."""
    max_bucket_reso: int = positive(1024)
    """Longest side of a bucket, in pixels (bucket_set sd_scripts)."""
    seed: int = at_least(0, 0)
    """Seed of the posterior samples (mode sample)."""
    jpeg_decoder: JpegDecoder = "pillow"
    """Who decodes JPEG files: `pillow` in the decoding processes, or `nvjpeg` on the autoencoder's GPU, where they are
    then cropped and resized as Pillow does it. Colours differ at edges, in files that hold fewer of them than pixels:
    an output is of one decoder. Files that are rotated, large or unusual stay with Pillow, and how many is told."""
    detect_changes: DetectChanges = "mtime"
    """How an encode that goes on notices source files that changed, to encode them again: by size and time of change
    (`mtime`), by SHA-256 (`digest`, which reads every source at each start, and sees into parquet and tar files), or
    not at all (`off`)."""
    lease_seconds: float = positive(120.0)
    """Time after which another process takes over the shard of a process that was lost on another node."""
    engine: Engine = "local"
    """Who encodes: this process and all others that run the same command (`local`), or the nodes of a Ray cluster
    (`ray`), which decode with their CPUs for an autoencoder on each GPU. The bytes are the same."""
    check_shards: bool = True
    """Compare the shards that are there already with their digests, when an encode goes on; without it only their
    sizes are compared, which reads no shard."""
    overwrite: bool = False
    """Replace an earlier encode in the output folder."""
    ray: RayOptions = field(default_factory=RayOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.streaming and self.engine == "ray"),
            "<streaming> is not for <engine> ray, whose tasks read single images; leave one of them out",
        )
        require(
            not (self.buckets and self.streaming),
            "<buckets> needs the headers of all images first, which <streaming> doesn't give",
        )
        require(
            self.crops == 1 or not self.buckets,
            f"<crops> is {self.crops}, but <buckets> keep nearly all of an image; leave one of them out",
        )
        for name, value in (
            ("flip", self.flip),
            ("buckets", self.buckets),
            ("crops", self.crops > 1),
            ("streaming", self.streaming),
            ("value_range", self.value_range),
            ("image_column", self.image_column),
            ("engine", self.engine == "ray"),
            ("jpeg_decoder", self.jpeg_decoder != "pillow"),
            ("layout", self.layout != "safetensors"),
        ):
            require(
                self.mel_frames is None or not value,
                f"<{name}> is for images, but <mel_frames> says that the data are sounds; leave it out",
            )
        require(
            self.jpeg_decoder == "pillow" or not self.reads_numbers,
            "<jpeg_decoder> is for pictures of 8 bits, and <value_range> says that images are numbers; leave it out",
        )
        require(
            self.bucket_set == "area" or self.min_bucket_reso <= self.resolution <= self.max_bucket_reso,
            f"<resolution> is {self.resolution}; it must lie between <min_bucket_reso> {self.min_bucket_reso} and "
            f"<max_bucket_reso> {self.max_bucket_reso}",
        )
        if self.layout == "lightningdit":
            require(self.flip, "<layout> is lightningdit, whose reader asks for mirrored latents; give <flip> too")
            require(not self.buckets, "<layout> is lightningdit, which has no place for <buckets> of several shapes")
        if self.buckets:
            require_divides(self.bucket_step, self.resolution, name="resolution", whose="the step of the buckets")
