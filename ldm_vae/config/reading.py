"""What may be read, and how much of it, wherever a command opens pictures."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_vae.config.rules import Options, positive


@dataclass(kw_only=True)
class ReadingRules(Options):
    """Limits on what pictures may cost, and on where they may lie."""

    max_pixels: int = positive(2**27)
    """Most pixels of a decoded picture. Larger ones are skipped. JPEGs count at the size that they are decoded at."""
    max_decode_seconds: float = positive(60.0)
    """Most seconds of a processor that decoding a picture may take. Slower ones are skipped."""
    allow_remote: bool = False
    """Fetch pictures that the data name by addresses (http, s3, hf, …). Otherwise such rows are skipped."""
    allow_outside: bool = False
    """Read pictures that the data name by paths outside of the data's own folder. Otherwise such rows are skipped."""

    def reading_rules(self) -> ReadingRules:
        """Return these rules alone."""
        return ReadingRules(
            max_pixels=self.max_pixels,
            max_decode_seconds=self.max_decode_seconds,
            allow_remote=self.allow_remote,
            allow_outside=self.allow_outside,
        )
