"""What a folder of scores holds beside its tables: maps as arrays, and pictures with their maps in colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ldm_vae.evaluation.grid import MAX_SIDE, SEEN_SIDE, save_grid
from ldm_vae.scoring.maps import draw_heat, reduced
from ldm_vae.scoring.measure import Kept
from ldm_vae.system.files import naming

MAPS, PICTURES = "maps", "pictures"
WHITE_AT = 2.0
"""The brightest colour stands for this many thresholds of the map's peak."""


def write_map(path: Path, kept: Kept) -> None:
    """Write a picture's maps as compressed arrays `pixel` and `perceptual`, float16 [H, W]."""
    arrays = {name: each.numpy() for name, each in kept.maps.items()}
    with naming(path):
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def write_heat(path: Path, kept: Kept, *, limits: Mapping[str, float]) -> None:
    """Write a picture beside its reconstruction and its maps in colour, enlarged where it is small.

    Args:
        path: The PNG.
        kept: The picture.
        limits: The errors that have the brightest colour, by the maps' names.
    """
    heats = [draw_heat(reduced(each.float(), side=MAX_SIDE), limit=limits[name]) for name, each in kept.maps.items()]
    titles = ["original", "reconstruction", *(f"{name} error" for name in kept.maps)]
    save_grid(path, [[kept.original, kept.reconstruction, *heats]], titles=titles, side=SEEN_SIDE)


def heat_limits(maps: Sequence[Mapping[str, Tensor]], thresholds: Mapping[str, float]) -> dict[str, float]:
    """Return the errors of the brightest colour: `WHITE_AT` times the threshold of the map's peak.

    Where that is 0 or no number, the largest error of all maps takes its place.
    """
    limits = {}
    for name in maps[0] if maps else ():
        limit = WHITE_AT * thresholds[f"{name}_peak"]
        if not (math.isfinite(limit) and limit > 0):
            limit = max(each[name].float().nan_to_num(0.0, posinf=0.0).max().item() for each in maps)
        limits[name] = limit or 1.0
    return limits
