"""Rows of a grid: which images they are of, and what they look like as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm_vae.evaluation.grid import MAX_SIDE, GridRows, save_grid
from ldm_vae.system.pixels import PICTURES, from_pixels


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(3, [0, 2, 4]), (7, [0, 1, 2, 3, 4, 5, 6]), (9, range(7)), (0, [])]
)
def test_rows_are_spread_over_what_a_process_reads(num_rows: int, expected: list[int]) -> None:
    images = from_pixels(torch.arange(7).repeat_interleave(12).view(7, 3, 2, 2))  # of the grey that is their number
    grid = GridRows(num_rows=num_rows, num_images=7, span=PICTURES, view=None)
    for batch in images.split(2):
        grid.add([batch, -batch])
    assert [row[0].getpixel((1, 1)) for row in grid.rows] == [(number,) * 3 for number in expected]
    assert [row[1].getpixel((0, 0)) for row in grid.rows] == [(255 - number,) * 3 for number in expected]


def test_a_large_picture_is_shown_by_its_middle_in_its_own_pixels(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2 * MAX_SIDE, 40), "black")
    picture.paste("red", (MAX_SIDE // 2, 0, MAX_SIDE // 2 + MAX_SIDE, 40))
    save_grid(tmp_path / "grid.png", [[picture, picture]], titles=["original", "made"])
    with Image.open(tmp_path / "grid.png") as grid:
        colours = dict((colour, count) for count, colour in grid.getcolors(maxcolors=2**16))
    assert colours[(255, 0, 0)] == 2 * MAX_SIDE * 40
