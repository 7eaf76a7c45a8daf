"""Settings of the images that a run trains and validates on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from ldm_vae.config.names import Crop, WhenChanged, WhenDead
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import at_least, between, positive, require, require_divides, source

MEL_BINS = 64
"""Mel filters of a frame of sound."""

_BUCKET = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
_MOST_BUCKETS = 16


@dataclass(kw_only=True)
class DataConfig(ReadingRules):
    """The images to train and validate on: folders of images, or whatever else `datasets.load_dataset` reads."""

    section: ClassVar[str] = "data"

    train: Optional[str] = source(None)
    """Images to train on: a folder of images, a hub id, or parquet or webdataset files, which a glob may name."""
    validation: Optional[str] = source(None)
    """Images to validate on, which the run doesn't train on. Without it there is no validation."""
    resolution: int = positive(256)
    """Side of the square training crops, in pixels."""
    buckets: list[str] = field(default_factory=list)
    """Shapes of the training crops as WIDTHxHEIGHT in pixels, such as 256x256, in place of squares of resolution. Each
    image belongs to the shape nearest to its aspect ratio, and all images of an update have one shape."""
    crop: Crop = "random"
    """How a crop is taken: `random` and `center` first resize the image's short side to resolution, `random_resized`
    takes a random part of the image and resizes it."""
    crop_min_area: float = between(0, 1, 0.25, ends="(]")
    """Smallest part of the image's area that a `random_resized` crop covers."""
    flip: bool = True
    """Mirror half of the images left to right."""
    target_channels: list[int] = at_least(0, factory=list)
    """Channels of the images that the model is to make, in this order, counted from 0: [0, 1, 2] for RGBA in and RGB
    out. Losses, measures and sample pictures see these alone; the encoder takes all. Without it they are all."""
    num_workers: Optional[int] = at_least(0, None)
    """Decoding processes of each training process. With 0 the training process decodes by itself. Without it there are
    as many as a GPU's process has cores of its own to decode on, less one, and 2 where there is no GPU."""
    image_column: Optional[str] = None
    """Column that holds the images. Without it the only image column of the data is taken."""
    split: Optional[str] = None
    """Split of the training data. Without it `train` is taken, or the only split."""
    validation_split: Optional[str] = None
    """Split of the validation data. Without it `validation` or `test` is taken, or the only split."""
    validation_images: int = positive(256)
    """The most validation images to use; they are the first ones."""
    whole_validation: bool = False
    """Validate on whole pictures, each cut to a multiple of the model's factor, instead of square crops of resolution.
    train.validation_memory_gib bounds the memory for them."""
    early_resolutions: list[int] = field(default_factory=list)
    """Smaller sides to begin with, one after the other: most is learnt there, in a fraction of the time. They are for
    models without attention, which are good at any size."""
    early_fractions: list[float] = field(default_factory=list)
    """Part of train.max_train_steps that is trained at each of early_resolutions, before the rest is trained at
    resolution."""
    mel_frames: Optional[int] = positive(None)
    """Frames of 10 ms of the mel spectrograms [1, mel_frames, 64] of sounds, in AudioLDM's format: 1024 for 10.24 s.
    With it `train` and `validation` name folders or files of sound, which the extra `audio` reads, and resolution
    doesn't count. Without it they name images."""
    streaming: bool = False
    """Read the training images as a stream, without a local copy and without random access."""
    shuffle_buffer: int = at_least(0, 0)
    """Number of undecoded images within which a stream is shuffled. With 0 its order is kept. A resumed run reads the
    stream again up to its place."""
    dead_files: WhenDead = "stop"
    """What a stream does with a file that can't be read on in three attempts: `stop` ends the run and names it, `skip`
    leaves the rest of it out until the next pass, and lists it in skipped.jsonl. A run that left files out goes on at
    its position, with other images where they can be read again."""
    file_timeout: float = positive(60.0)
    """Seconds after which a file of a stream that gives nothing counts as one that can't be read."""
    changed: WhenChanged = "refuse"
    """What a resumed run does where its training images are no longer those of the checkpoint: `refuse` says what
    changed and stops, `accept` says what changed and goes on, in another order."""
    strict: bool = False
    """Stop at the first unreadable image instead of skipping, counting and listing it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            all(0 < side < self.resolution for side in self.early_resolutions),
            f"<data.early_resolutions> is {self.early_resolutions}; they must be positive and smaller than "
            f"<data.resolution>, which is {self.resolution}",
        )
        require(
            len(self.early_fractions) == len(self.early_resolutions),
            f"<data.early_fractions> has {len(self.early_fractions)} entries for {len(self.early_resolutions)} "
            f"<data.early_resolutions>",
        )
        require(
            all(fraction > 0 for fraction in self.early_fractions) and sum(self.early_fractions) < 1,
            f"<data.early_fractions> is {self.early_fractions}; they must be positive, and together less than 1",
        )
        self._check_buckets()
        if self.mel_frames is not None:
            self._check_sounds()
        require(
            self.shuffle_buffer == 0 or self.streaming,
            "<data.shuffle_buffer> is for <data.streaming>; without it the whole collection is shuffled anyway",
        )
        require(
            self.dead_files == "stop" or self.streaming,
            "<data.dead_files> is for <data.streaming>; without it single images are skipped",
        )

    def _check_buckets(self) -> None:
        for bucket in self.buckets:
            require(
                _BUCKET.fullmatch(bucket) is not None,
                f"<data.buckets> has '{bucket}'; write width and height in pixels, such as 256x192",
            )
        require(
            len(set(self.buckets)) == len(self.buckets) <= _MOST_BUCKETS,
            f"<data.buckets> has {len(self.buckets)} entries; it can have {_MOST_BUCKETS} different ones, of each of "
            f"which a step is rehearsed at the start",
        )
        require(
            not (self.buckets and self.early_resolutions),
            "<data.early_resolutions> are for square crops; leave them or <data.buckets> out",
        )
        require(
            len(self.buckets) < 2 or not self.streaming,
            "<data.buckets> needs the headers of all images first, which <data.streaming> doesn't give; name one",
        )

    def _check_sounds(self) -> None:
        for name, value in (
            ("early_resolutions", self.early_resolutions),
            ("buckets", self.buckets),
            ("value_range", self.value_range),
            ("streaming", self.streaming),
            ("whole_validation", self.whole_validation),
            ("image_column", self.image_column),
            ("flip", self.flip),
        ):
            require(
                not value,
                f"<data.{name}> is for images, but <data.mel_frames> says that the data are sounds; "
                + ("set it to false" if value is True else "leave it out"),
            )
        require(
            self.crop != "random_resized",
            "<data.crop> is random_resized, but <data.mel_frames> says that the data are sounds, which keep their "
            "pitch; take random or center",
        )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the training crops, the largest first; one where there is one bucket or none."""
        if self.mel_frames is not None:
            return [(MEL_BINS, self.mel_frames)]
        if not self.buckets:
            return [(self.resolution, self.resolution)]
        sides = (bucket.split("x") for bucket in self.buckets)
        sizes = [(int(width), int(height)) for width, height in sides]
        return sorted(sizes, key=lambda size: (-size[0] * size[1], size))

    @property
    def shapes(self) -> dict[str, Any]:
        """The shapes of images outside of training, as arguments of `EvaluationImages`."""
        return {"resolution": None, "sizes": self.sizes} if self.buckets else {"resolution": self.resolution}


def check_resolution(data: DataConfig, *, spatial_factor: int) -> None:
    """Raise `FieldError` unless the model's spatial factor divides the resolutions."""
    if data.mel_frames is not None:
        require_divides(spatial_factor, data.mel_frames, name="data.mel_frames", whose="the model's factor")
        require(
            MEL_BINS % spatial_factor == 0,
            f"the model's factor {spatial_factor} doesn't divide the {MEL_BINS} mels of a frame of <data.mel_frames>",
        )
        return
    for width, height in data.sizes if data.buckets else []:
        require(
            width % spatial_factor == 0 and height % spatial_factor == 0,
            f"<data.buckets> has {width}x{height}, whose sides the model's factor {spatial_factor} does not divide",
        )
    named = [("resolution", data.resolution), *(("early_resolutions", side) for side in data.early_resolutions)]
    for name, side in named:
        require_divides(spatial_factor, side, name=f"data.{name}", whose="the model's factor")
