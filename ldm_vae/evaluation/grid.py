"""Pictures side by side, with a title above each column."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm_vae.config.views import View
from ldm_vae.images.transforms import middle_box, to_shown
from ldm_vae.system.files import whole_or_absent
from ldm_vae.system.pixels import Span, as_pictures

MAX_SIDE = 512
SEEN_SIDE = 256
"""A side that people see details of: for grids of single pictures, which may be small."""
_GAP = 8
_BACKGROUND = "white"


@dataclass(kw_only=True)
class GridRows:
    """Rows of a grid, spread over the images; `merge` takes in those of other processes.

    The images are cut into as many stretches as there are rows, and the first of each that can be read gets the row,
    whichever process reads it.
    """

    num_rows: int
    indices: Sequence[int]
    """The images that are measured, in rising order, by all processes."""
    span: Span
    view: View | None
    """Which channels are shown."""
    _rows: dict[int, tuple[int, list[Image.Image]]] = field(default_factory=dict)
    """By stretch: the image, and pictures of it and its reconstructions."""

    @property
    def rows(self) -> list[list[Image.Image]]:
        """Pictures of an original and its reconstructions, a row each."""
        return [self._rows[stretch][1] for stretch in sorted(self._rows)]

    def add(self, indices: Sequence[int], columns: Sequence[Tensor]) -> None:
        """Take rows from a batch: the images' numbers, and originals and reconstructions, each [B, C, H, W]."""
        for index, *images in zip(indices, *columns, strict=True):
            stretch = bisect_left(self.indices, index) * self.num_rows // len(self.indices)
            if self.num_rows and (stretch not in self._rows or index < self._rows[stretch][0]):
                shown = [to_shown(as_pictures(image, self.span), self.view) for image in images]
                self._rows[stretch] = (index, shown)

    def merge(self, parts: Iterable[GridRows]) -> None:
        """Take in what other processes have."""
        for part in parts:
            for stretch, row in part._rows.items():
                if stretch not in self._rows or row[0] < self._rows[stretch][0]:
                    self._rows[stretch] = row


def save_grid(path: Path, rows: Sequence[Sequence[Image.Image]], *, titles: Sequence[str], side: int = 1) -> None:
    """Write rows of pictures as a PNG, whole or absent, in their own pixels.

    Args:
        path: The file.
        rows: Pictures side by side, one a title in each row. Of a large picture the middle `MAX_SIDE` pixels a side
            are shown, and alpha is shown on white.
        titles: One a column, shown above it.
        side: Smaller pictures are enlarged to so many pixels at most, each pixel to a whole square.
    """
    cells = [[_enlarged(_middle(picture), side=side) for picture in row] for row in rows]
    font = ImageFont.load_default(size=14)
    width = max([cell.width for row in cells for cell in row], default=0)
    width = max([width, *(int(font.getlength(title)) + 1 for title in titles)])
    header = 14 + 2 * _GAP
    height = header + sum(row[0].height + _GAP for row in cells)
    grid = Image.new("RGB", (_GAP + len(titles) * (width + _GAP), height), _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (width + _GAP), _GAP), title, fill="black", font=font)
    top = header
    for row in cells:
        for column, cell in enumerate(row):
            grid.paste(cell, (_GAP + column * (width + _GAP), top))
        top += row[0].height + _GAP
    with whole_or_absent(path) as temporary:
        grid.save(temporary, format="PNG")


def _enlarged(picture: Image.Image, *, side: int) -> Image.Image:
    factor = max(1, side // max(picture.size))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def _middle(picture: Image.Image) -> Image.Image:
    box = middle_box(picture.size, cut=(min(picture.width, MAX_SIDE), min(picture.height, MAX_SIDE)))
    cut = picture.crop(box).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", cut.size, _BACKGROUND), cut).convert("RGB")
