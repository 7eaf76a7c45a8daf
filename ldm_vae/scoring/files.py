"""What a folder of scores holds beside its tables: maps as arrays, and pictures with their maps in colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm_vae.config.views import View
from ldm_vae.evaluation.grid import MAX_SIDE, save_grid
from ldm_vae.images.transforms import to_shown
from ldm_vae.scoring.measure import Kept
from ldm_vae.system.files import naming

MAPS, PICTURES = "maps", "pictures"
MAX_MAP_SIDE = 1024
"""A map with a longer side is reduced to it; each cell has the largest error that it covers."""
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Red, green and blue from no error to the brightest, in equal steps."""
_BROKEN = (0, 255, 255)
"""What shows an error that is no number."""
WHITE_AT = 2.0
"""The brightest colour stands for this many thresholds of the map's peak."""


def write_map(path: Path, kept: Kept) -> None:
    """Write a picture's maps as compressed arrays `pixel` and `perceptual`, float16 [H, W]."""
    arrays = {name: reduced(each, side=MAX_MAP_SIDE).half().numpy() for name, each in kept.maps.items()}
    with naming(path):
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def write_heat(path: Path, kept: Kept, *, limits: Mapping[str, float], view: View | None) -> None:
    """Write a picture beside its reconstruction and its maps in colour.

    Args:
        path: The PNG.
        kept: The picture.
        limits: The errors that have the brightest colour, by the maps' names.
        view: Which channels are shown.
    """
    shown = [_small(to_shown(each.nan_to_num(0.0), view)) for each in (kept.original, kept.reconstruction)]
    heats = [draw_heat(reduced(each, side=MAX_SIDE), limit=limits[name]) for name, each in kept.maps.items()]
    titles = ["original", "reconstruction", *(f"{name} error" for name in kept.maps)]
    save_grid(path, [[*shown, *heats]], titles=titles)


def heat_limits(maps: Sequence[Mapping[str, Tensor]], thresholds: Mapping[str, float]) -> dict[str, float]:
    """Return the errors of the brightest colour: `WHITE_AT` times the threshold of the map's peak.

    Where that is 0 or no number, the largest error of all maps takes its place.
    """
    limits = {}
    for name in maps[0] if maps else ():
        limit = WHITE_AT * thresholds[f"{name}_peak"]
        if not (math.isfinite(limit) and limit > 0):
            limit = max(each[name].nan_to_num(0.0, posinf=0.0).max().item() for each in maps)
        limits[name] = limit or 1.0
    return limits


def draw_heat(values: Tensor, *, limit: float) -> Image.Image:
    """Return errors [H, W] in colour, from black for 0 to the brightest for `limit` and above."""
    colours = torch.tensor(HEAT, dtype=torch.float32)
    place = (values.float() / limit).clamp(0, 1) * (len(HEAT) - 1)
    broken = place.isnan()
    place = place.nan_to_num(0.0)
    below = place.floor().clamp(max=len(HEAT) - 2).long()
    part = (place - below)[..., None]
    pixels = (colours[below] * (1 - part) + colours[below + 1] * part).round()
    pixels[broken] = torch.tensor(_BROKEN, dtype=torch.float32)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def reduced(values: Tensor, *, side: int) -> Tensor:
    """Return a map [H, W] whose sides are at most `side`; each cell has the largest value that it covers."""
    height, width = values.shape
    shrink = max(height, width) / side
    if shrink <= 1:
        return values
    size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
    return nn.functional.adaptive_max_pool2d(values[None], size)[0]


def _small(picture: Image.Image) -> Image.Image:
    """Return a picture whose sides are at most those of the maps beside it."""
    shrink = max(picture.size) / MAX_SIDE
    if shrink <= 1:
        return picture
    width, height = (max(1, round(side / shrink)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)
