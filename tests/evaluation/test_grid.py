"""Rows of a grid: which images they are of, and what they look like as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm_vae.evaluation.grid import MAX_SIDE, GridRows, save_grid
from ldm_vae.system.pixels import PICTURES, from_pixels


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_rows", "expected"), [(3, [0, 3, 5]), (7, [0, 1, 2, 3, 5, 6]), (9, [0, 1, 2, 3, 5, 6]), (1, [0]), (0, [])]
)
def test_rows_are_spread_over_the_images(num_rows: int, expected: list[int], processes: int) -> None:
    """Image 4 of 7, which are numbers 0, 10 …, can't be read; any processes give the same rows."""
    images = from_pixels(torch.arange(7).repeat_interleave(12).view(7, 3, 2, 2))  # of the grey that is their number
    grids = [GridRows(num_rows=num_rows, indices=range(0, 70, 10), span=PICTURES, view=None) for _ in range(processes)]
    for rank, grid in enumerate(grids):
        mine = [number for number in range(rank, 7, processes) if number != 4]
        for some in (mine[:2], mine[2:]):
            grid.add([10 * number for number in some], [images[some], -images[some]])
    grid = grids[-1]
    grid.merge(grids[:-1])
    assert [row[0].getpixel((1, 1)) for row in grid.rows] == [(number,) * 3 for number in expected]
    assert [row[1].getpixel((0, 0)) for row in grid.rows] == [(255 - number,) * 3 for number in expected]


def test_a_large_picture_is_shown_by_its_middle_in_its_own_pixels(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2 * MAX_SIDE, 40), "black")
    picture.paste("red", (MAX_SIDE // 2, 0, MAX_SIDE // 2 + MAX_SIDE, 40))
    save_grid(tmp_path / "grid.png", [[picture, picture]], titles=["original", "made"])
    with Image.open(tmp_path / "grid.png") as grid:
        colours = dict((colour, count) for count, colour in grid.getcolors(maxcolors=2**16))
    assert colours[(255, 0, 0)] == 2 * MAX_SIDE * 40
