"""Options of `ldm-vae encode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import ReadsImages, ReadsVae, RunsAutoencoder
from ldm_vae.config.names import BucketSet, DetectChanges, DType, LatentsMode
from ldm_vae.config.rules import at_least, local_path, positive, require, require_divides, source


@dataclass(kw_only=True)
class EncodeOptions(ReadsImages, ReadsVae, RunsAutoencoder):
    """Encode images into shards of latents, one row an image.

    Any number of processes, on any number of nodes that share the output folder, may run the same command: they divide
    the shards among themselves. An interrupted encode is finished by starting it again, with any number of processes.
    """

    vae: str = source()
    """Folder, hub id or single file of the autoencoder."""
    data: str = source()
    """Folder of images, hub id, parquet or webdataset files."""
    output: str = local_path()
    """Folder of the shards; an interrupted one is finished."""
    split: Optional[str] = None
    """Split of the data; none: `train`, or the only one."""
    streaming: bool = False
    """Read the data as a stream, without a local copy: processes share it by input file, shards follow the input
    files, and sources that changed are not found."""
    resolution: int = positive(256)
    """Short side is resized to this and the centre is cropped to a square, in pixels."""
    buckets: bool = False
    """Keep aspect ratios: each image is resized and cropped to the nearest of a set of sizes with at most resolution²
    pixels, and images are numbered bucket by bucket, so that a shard holds one shape."""
    bucket_step: int = positive(64)
    """Sides of the buckets are multiples of this, in pixels."""
    bucket_max_aspect: float = at_least(1, 2.0)
    """Longest side of a bucket over its shortest (bucket_set area)."""
    bucket_set: BucketSet = "area"
    """Which sizes there are, and which is nearest: `area` takes all sizes that use the area well, and compares aspect
    ratios by their quotient; `sd_scripts` does both as kohya's sd-scripts, so that `latents export --layout kohya` can
    write them."""
    min_bucket_reso: int = positive(256)
    """Shortest side of a bucket, in pixels (bucket_set sd_scripts)."""
    max_bucket_reso: int = positive(1024)
    """Longest side of a bucket, in pixels (bucket_set sd_scripts)."""
    mode: LatentsMode = "moments"
    """Store mean and std, the mean alone, or one sample of the posterior."""
    flip: bool = False
    """Store the mirrored images' latents too, beside the others (`mean_flip` and so on)."""
    shard_size: int = positive(1024)
    """Images a shard: sample i is in shard i // shard_size."""
    dtype: DType = "float16"
    """Type of the stored latents."""
    batch_size: int = positive(8)
    """Images encoded at once."""
    seed: int = at_least(0, 0)
    """Seed of the posterior samples (mode sample)."""
    detect_changes: DetectChanges = "mtime"
    """How source files that changed since they were encoded are found, to be encoded again: by size and time of
    change, by SHA-256 (reads every source at each start, and sees into parquet and tar files), or not at all."""
    lease_seconds: float = positive(120.0)
    """A shard of a process that was lost on another node is taken over after so long."""
    overwrite: bool = False
    """Replace what the output holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.buckets and self.streaming),
            "<buckets> needs the headers of all images first, which <streaming> doesn't give",
        )
        require(
            self.bucket_set == "area" or self.min_bucket_reso <= self.resolution <= self.max_bucket_reso,
            f"<resolution> is {self.resolution}; it must lie between <min_bucket_reso> {self.min_bucket_reso} and "
            f"<max_bucket_reso> {self.max_bucket_reso}",
        )
        if self.buckets:
            require_divides(self.bucket_step, self.resolution, name="resolution", whose="the step of the buckets")
