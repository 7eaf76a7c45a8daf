"""How much a page shows: less of it where the page would grow large beside its pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

MAX_BYTES = 300_000
"""Of a page beside its pictures."""
_PICTURE = re.compile(r"data:image/\w+;base64,[\w+/=]+")
_LEAST = 1 / 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most of each kind that a page shows; of pictures and figures in one evaluation."""

    rows: int = 200
    """Images in the table of single images; half as many in one of scores."""
    cells: int = 1000
    """Figures in the table of single images, about."""
    reconstructions: int = 400
    """Pictures of reconstructions."""
    channels: int = 800
    """Latent channels that are pictures by themselves; where there are more, an autoencoder's stand in one."""
    bars: int = 400
    """Bars of channels in a frame; where there were more, there are lines."""
    points: int = 150
    """Points of all lines in a frame together, about; a line has some, however many there are."""
    settings: int = 20_000
    """Characters of a run's settings."""
    part: float = 1.0
    """Which part of the usual limits these are."""

    def points_in(self, num_lines: int) -> int:
        """Return the most points of a line, where so many are in a frame."""
        return max(8, self.points // 4, self.points // max(1, num_lines))

    @property
    def can_be_less(self) -> bool:
        """Whether a page can show less than this."""
        return self.part > _LEAST

    def halved(self) -> Limits:
        """Return half of each."""
        names = [field.name for field in fields(self) if field.name != "part"]
        return Limits(part=self.part / 2, **{name: max(1, getattr(self, name) // 2) for name in names})


def is_small(html: str) -> bool:
    """Whether a page takes less than `MAX_BYTES` beside its pictures."""
    return len(_PICTURE.sub("", html).encode("utf-8")) < MAX_BYTES
