"""What it is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional

from ldm_vae.config.names import Crop, WhenChanged
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import at_least, between, positive, require, require_divides, source


@dataclass(kw_only=True)
class DataConfig(ReadingRules):
    """The images: whatever `datasets.load_dataset` reads."""

    section: ClassVar[str] = "data"

    train: Optional[str] = source(None)
    """Images to train on: a folder of images, a hub id, or parquet or webdataset files (a glob is fine)."""
    validation: Optional[str] = source(None)
    """Images to validate on, never trained on; none: no validation."""
    split: Optional[str] = None
    """Split of `train`; none: `train`, or the only one."""
    validation_split: Optional[str] = None
    """Split of `validation`; none: `validation`, `test` or the only one."""
    image_column: Optional[str] = None
    """Column that holds the images; none: the only image column there is."""
    resolution: int = positive(256)
    """Side of the square training crops, in pixels."""
    early_resolutions: list[int] = field(default_factory=list)
    """Smaller sides to begin with, one after the other: most is learnt there, in a fraction of the time. For models
    without attention, which are good at any size."""
    early_fractions: list[float] = field(default_factory=list)
    """Part of train.max_train_steps that is trained at each of early_resolutions, before those at resolution."""
    crop: Crop = "random"
    """`random` and `center` first resize the short side to `resolution`; `random_resized` takes a random part."""
    crop_min_area: float = between(0, 1, 0.25, ends="(]")
    """Smallest part of the image's area that a `random_resized` crop covers."""
    flip: bool = True
    """Mirror half of the images left to right."""
    num_workers: int = at_least(0, 2)
    """Decoding processes for each training process; 0: in the training process itself."""
    streaming: bool = False
    """Read the source as a stream, without a local copy and without random access."""
    shuffle_buffer: int = at_least(0, 0)
    """Images a stream is shuffled within, undecoded; 0 keeps its order. A resumed run reads up to its place again."""
    validation_images: int = positive(256)
    """At most so many validation images are used, the first ones."""
    whole_validation: bool = False
    """Validate on whole pictures, each cut to a multiple of the model's factor, instead of square crops of
    `resolution`. train.validation_memory_gib bounds the memory for them."""
    changed: WhenChanged = "refuse"
    """What a resumed run does where its training images are no longer those of the checkpoint: `refuse` says what
    changed and stops, `accept` says it and goes on, in another order."""
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
        require(
            self.shuffle_buffer == 0 or self.streaming,
            "<data.shuffle_buffer> is for <data.streaming>; without it the whole collection is shuffled anyway",
        )


def check_resolution(data: DataConfig, *, spatial_factor: int) -> None:
    """Raise `FieldError` unless the model's spatial factor divides the resolutions."""
    named = [("resolution", data.resolution), *(("early_resolutions", side) for side in data.early_resolutions)]
    for name, side in named:
        require_divides(spatial_factor, side, name=f"data.{name}", whose="the model's factor")
