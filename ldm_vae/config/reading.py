"""What may be read, as what, and how much of it, wherever a command opens pictures."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ldm_vae.config.rules import Options, positive, require


@dataclass(kw_only=True)
class ReadingRules(Options):
    """Limits on what pictures may cost and on where they may lie, and what their numbers mean."""

    max_pixels: int = positive(2**27)
    """Most pixels of a decoded picture. Larger ones are skipped. JPEGs count at the size that they are decoded at, and
    four numbers of an array as a pixel."""
    max_decode_seconds: float = positive(60.0)
    """Most seconds of a processor that decoding a picture may take. Slower ones are skipped."""
    allow_remote: bool = False
    """Fetch pictures that the data name by addresses (http, s3, hf, …). Otherwise such rows are skipped."""
    allow_outside: bool = False
    """Read pictures that the data name by paths outside of the data's own folder. Otherwise such rows are skipped."""
    value_range: list[float] = field(default_factory=list)
    """The lowest and the highest value of the images' numbers, for all channels or for each in turn. With it files are
    read as numbers: .npy and .npz arrays, TIFF of any number of channels and depth, and others as they are stored.
    Without it images are pictures of 8 bits, and arrays are left out."""
    clip_values: bool = False
    """Take numbers outside of value_range for its nearest end. Otherwise images with such numbers are skipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lows, highs = self.value_range[0::2], self.value_range[1::2]
        require(
            len(lows) == len(highs) and all(low < high for low, high in zip(lows, highs, strict=True)),
            f"<{self.field_name('value_range')}> is {self.value_range}; it must be the lowest and the highest value, "
            f"for all channels or for each in turn",
        )

    @property
    def reads_numbers(self) -> bool:
        """Whether images are numbers in a declared range instead of pictures of 8 bits."""
        return len(self.value_range) > 0

    def reading_rules(self) -> ReadingRules:
        """Return these rules alone."""
        return ReadingRules(**{declared.name: getattr(self, declared.name) for declared in fields(ReadingRules)})

    def check_channels(self, num_channels: int) -> None:
        """Raise `FieldError` unless these rules can give images of so many channels."""
        name = self.field_name("value_range")
        require(
            self.reads_numbers or num_channels in (1, 3, 4),
            f"<{name}> is missing: pictures have 1, 3 or 4 channels, and the model takes {num_channels}, which are "
            f"read from arrays and TIFF files once their lowest and highest value are declared",
        )
        require(
            len(self.value_range) in (0, 2, 2 * num_channels),
            f"<{name}> has {len(self.value_range)} numbers; it must have 2, or 2 for each of {num_channels} channels",
        )
