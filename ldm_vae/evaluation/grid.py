"""Pictures side by side, with a title above each column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm_vae.system.files import whole_or_absent

MAX_SIDE = 512
_GAP = 8
_BACKGROUND = "white"


def save_grid(path: Path, rows: Sequence[Sequence[Image.Image]], *, titles: Sequence[str]) -> None:
    """Write rows of pictures as a PNG, whole or absent, in their own pixels: of a large one, the middle `MAX_SIDE`
    pixels a side. All rows have one picture a title; alpha is shown on white."""
    cells = [[_middle(picture) for picture in row] for row in rows]
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


def _middle(picture: Image.Image) -> Image.Image:
    width, height = min(picture.width, MAX_SIDE), min(picture.height, MAX_SIDE)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    cut = picture.crop((left, top, left + width, top + height)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", cut.size, _BACKGROUND), cut).convert("RGB")
