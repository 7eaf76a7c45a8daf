"""Maps in colour and maps that are reduced."""

from __future__ import annotations

import math

import numpy as np
import torch

from ldm_vae.scoring.files import heat_limits
from ldm_vae.scoring.maps import HEAT, draw_heat, reduced


def test_colours_go_from_black_to_the_brightest_at_the_limit() -> None:
    values = torch.tensor([[0.0, 2.5, 5.0, 7.5, 10.0, 1e9, math.inf, math.nan, 1.25]])
    pixels = np.asarray(draw_heat(values, limit=10.0))[0]
    assert pixels[:5].tolist() == [list(colour) for colour in HEAT]
    assert pixels[5].tolist() == pixels[6].tolist() == list(HEAT[-1])
    assert pixels[7].tolist() == [0, 255, 255]
    np.testing.assert_allclose(pixels[8], (np.array(HEAT[0]) + np.array(HEAT[1])) / 2, atol=0.5)


def test_a_reduced_map_keeps_every_largest_error() -> None:
    values = torch.zeros(300, 200)
    values[17, 150] = 3.0
    small = reduced(values, side=64)
    assert small.shape == (64, 43)
    assert (small == 3).sum() == 1
    assert reduced(values, side=300) is values


def test_limits_are_twice_the_peaks_thresholds_or_the_largest_error() -> None:
    maps = [{"pixel": torch.tensor([[1.0, 5.0]])}, {"pixel": torch.tensor([[math.nan, 7.0]])}]
    assert heat_limits(maps, {"pixel_peak": 4.0}) == {"pixel": 8.0}
    assert heat_limits(maps, {"pixel_peak": 0.0}) == {"pixel": 7.0}
    assert heat_limits(maps, {"pixel_peak": math.nan}) == {"pixel": 7.0}
    assert heat_limits([], {"pixel_peak": 4.0}) == {}
