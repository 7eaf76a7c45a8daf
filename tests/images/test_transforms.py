from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_vae.images.transforms import Crop, crop_box, resize_crop, to_image, to_tensor
from tests.pictures import noise

SIDES = st.integers(1, 6000)


@settings(max_examples=300, deadline=None)
@given(
    width=SIDES,
    height=SIDES,
    resolution=st.integers(1, 1024),
    crop=st.sampled_from(["random_resized", "random", "center"]),
    min_area=st.floats(0.01, 1),
    seed=st.integers(0, 100),
)
def test_boxes_are_squares_inside_the_picture(
    width: int, height: int, resolution: int, crop: Crop, min_area: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    left, top, right, bottom = crop_box((width, height), resolution=resolution, crop=crop, min_area=min_area, rng=rng)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left == pytest.approx(bottom - top, rel=1e-6, abs=1e-6)
    side = min(width, height)
    if crop == "random_resized":
        side = min(side, (min_area * width * height) ** 0.5)
        assert right - left >= side * (1 - 1e-6)
    else:
        assert right - left == pytest.approx(side)


@settings(max_examples=200, deadline=None)
@given(
    width=SIDES,
    height=SIDES,
    wide=st.integers(1, 512),
    high=st.integers(1, 512),
    crop=st.sampled_from(["random_resized", "random", "center"]),
    min_area=st.floats(0.01, 1),
    seed=st.integers(0, 100),
)
def test_boxes_of_other_shapes_have_the_asked_aspect(
    width: int, height: int, wide: int, high: int, crop: Crop, min_area: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    left, top, right, bottom = crop_box(
        (width, height), resolution=(wide, high), crop=crop, min_area=min_area, rng=rng
    )
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (right - left) * high == pytest.approx((bottom - top) * wide, rel=1e-6)
    largest = min(width / wide, height / high)
    if crop == "random_resized":
        largest = min(largest, (min_area * width * height / (wide * high)) ** 0.5)
        assert (right - left) >= largest * wide * (1 - 1e-6)
    else:
        assert right - left == pytest.approx(largest * wide)
    if crop == "center":
        assert abs(left + right - width) <= 2 * largest
        assert abs(top + bottom - height) <= 2 * largest


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (32, 47), (64, 64)])
@pytest.mark.parametrize("crop", ["random", "center"])
def test_plain_crops_are_those_of_the_resized_picture(size: tuple[int, int], crop: Crop) -> None:
    image = Image.fromarray(noise(size[1], size[0], 3))
    scale = 32 / min(size)
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    places = [(x, y) for x in range(resized.width - 31) for y in range(resized.height - 31)]
    expected = {resized.crop((x, y, x + 32, y + 32)).tobytes(): (x, y) for x, y in places}
    seen = set()
    for seed in range(200 if crop == "random" else 1):
        box = crop_box(size, resolution=32, crop=crop, rng=np.random.default_rng(seed))
        seen.add(expected[resize_crop(image, box, resolution=32).tobytes()])
    assert seen == (set(places) if crop == "random" else {places[(len(places) - 1) // 2]})


def test_random_resized_crops_spread_over_areas_and_places() -> None:
    rng = np.random.default_rng(0)
    boxes = [crop_box((300, 200), resolution=64, crop="random_resized", min_area=0.2, rng=rng) for _ in range(2000)]
    areas = np.array([(right - left) ** 2 / 60000 for left, _, right, _ in boxes])
    assert np.quantile(areas, [0, 0.5, 1]) == pytest.approx([0.2, (0.2 + 2 / 3) / 2, 2 / 3], abs=0.02)
    centers = np.array([(left + right) / 2 for left, _, right, _ in boxes])
    assert centers.mean() == pytest.approx(150, abs=3)
    assert centers.std() > 30


def test_resizing_is_antialiased() -> None:
    checkerboard = np.indices((128, 128)).sum(axis=0) % 2 * 255
    resized = resize_crop(Image.fromarray(checkerboard.astype(np.uint8)), (0, 0, 128, 128), resolution=16)
    assert np.abs(np.asarray(resized, dtype=float) - 127.5).max() < 2


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_tensors_and_pictures_round_trip_exactly(mode: str, channels: int) -> None:
    values = np.arange(256 * channels, dtype=np.uint32).astype(np.uint8).reshape(16, 16, channels)
    image = Image.fromarray(values[..., 0] if channels == 1 else values)
    assert image.mode == mode
    tensor = to_tensor(image)
    assert tensor.shape == (channels, 16, 16)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    back = to_image(tensor)
    assert back.mode == mode
    assert back.tobytes() == image.tobytes()


def test_pictures_are_clamped_and_rounded() -> None:
    tensor = torch.tensor([-7.0, -1.0, 0.001, 1.0, 3.0]).reshape(1, 1, 5)
    assert list(to_image(tensor).tobytes()) == [0, 0, 128, 255, 255]
