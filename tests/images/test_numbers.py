"""Arrays and other files as numbers in a declared range: each value follows from the range, not from a library."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import FieldError
from ldm_vae.images.bands import out_of_range
from ldm_vae.images.collection import open_collection
from ldm_vae.images.decoding import decode_image, read_crop, upright_size
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.training import Augmentation, TrainingImages
from ldm_vae.images.transforms import crop_box, to_tensor

HEIGHT, WIDTH, CHANNELS = 12, 20, 5
LOW, HIGH = 0.0, 10000.0
VALUES = np.random.default_rng(0).integers(0, 10001, (HEIGHT, WIDTH, CHANNELS), dtype=np.uint16)
RULES = ReadingRules(value_range=[LOW, HIGH])


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", "metadata": None, **options})
    return file.getvalue()


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], int]] = {
    "rows, columns, channels": (lambda: npy(VALUES), 5),
    "channels, rows, columns": (lambda: npy(np.asfortranarray(VALUES.transpose(2, 0, 1))), 5),
    "rows, columns": (lambda: npy(VALUES[..., 0].astype(">f8")), 1),
    "the only array": (lambda: npz(reflectance=VALUES.astype(np.int32)), 5),
    "the array called image": (lambda: npz(mask=VALUES[..., 0], image=VALUES.astype(np.float32)), 5),
    "TIFF": (lambda: tiff(VALUES, planarconfig="contig"), 5),
    "compressed planes": (
        lambda: tiff(VALUES.transpose(2, 0, 1), planarconfig="separate", compression="lzw", predictor=True),
        5,
    ),
    "pages": (lambda: tiff(VALUES.transpose(2, 0, 1)), 5),
    "first of several pages": (lambda: tiff(VALUES.transpose(2, 0, 1)), 1),
    "floating-point TIFF": (lambda: tiff(VALUES[..., :3].astype(np.float32), planarconfig="contig"), 3),
    "PNG of 16 bits": (lambda: png(VALUES[..., 0]), 1),
}


@pytest.mark.parametrize("name", FILES)
def test_numbers_become_their_part_of_the_range(name: str, tmp_path: Path) -> None:
    make, channels = FILES[name]
    (tmp_path / "x").write_bytes(make())
    expected = 2 * (VALUES[..., :channels].astype(np.float64) - LOW) / (HIGH - LOW) - 1
    for source in (make(), tmp_path / "x"):
        read = decode_image(source, channels=channels, rules=RULES)
        np.testing.assert_allclose(np.asarray(to_tensor(read)).transpose(1, 2, 0), expected, atol=1e-7, rtol=0)
        assert to_tensor(read).dtype == torch.float32
        assert upright_size(source, channels=channels, rules=RULES) == read.size == (WIDTH, HEIGHT)


def test_colours_of_sixteen_bits_keep_them_all() -> None:
    rows = VALUES[..., :3].astype(">u2").reshape(HEIGHT, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    read = np.asarray(to_tensor(decode_image(content, channels=3, rules=RULES)))
    np.testing.assert_allclose(read.transpose(1, 2, 0), VALUES[..., :3] / 5000 - 1, atol=1e-6)


def test_each_channel_may_have_a_range_of_its_own() -> None:
    ranges = [0, 10000, -100, 20000, 0, 40000, -1e6, 1e6, 0, 10001]
    read = decode_image(npy(VALUES), channels=5, rules=ReadingRules(value_range=ranges))
    for channel, (low, high) in enumerate(zip(ranges[0::2], ranges[1::2], strict=True)):
        expected = 2 * (VALUES[..., channel] - float(low)) / (high - low) - 1
        np.testing.assert_allclose(np.asarray(to_tensor(read))[channel], expected, atol=1e-6)
    back = out_of_range(np.asarray(to_tensor(read)).transpose(1, 2, 0), value_range=ranges)
    np.testing.assert_allclose(back[..., [0, 1, 4]], VALUES[..., [0, 1, 4]], atol=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_numbers_stand_upright(orientation: int) -> None:
    grey = VALUES[..., 0].astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", exif=exif)
    upright = np.asarray(decode_image(file.getvalue(), channels=1))
    stated = tiff(grey, extratags=[(274, "H", 1, orientation, True)])
    rules = ReadingRules(value_range=[0, 255])
    for content in (file.getvalue(), stated):
        read = to_tensor(decode_image(content, channels=1, rules=rules))
        np.testing.assert_allclose(np.asarray(read)[0], upright / 127.5 - 1, atol=1e-6)
        assert upright_size(content, channels=1, rules=rules) == (upright.shape[1], upright.shape[0])


@pytest.mark.parametrize("box", [(0.0, 0.0, 12.0, 12.0), (3.25, 1.5, 9.75, 8.0), (7.0, 2.0, 20.0, 12.0)])
@pytest.mark.parametrize("side", [3, 16])
def test_crops_are_those_of_the_whole_array_resized(
    box: tuple[float, float, float, float], side: int, tmp_path: Path
) -> None:
    """Bicubic and antialiased in float32, clipped to the range; though only the pixels around the crop are read."""
    np.save(tmp_path / "x.npy", VALUES)
    read = read_crop(tmp_path / "x.npy", channels=5, resolution=side, box_of=lambda _: box, rules=RULES)
    whole = decode_image(tmp_path / "x.npy", channels=5, rules=RULES)
    for channel in range(5):
        plane = Image.fromarray(np.ascontiguousarray(whole.values[..., channel]))
        expected = np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC, box=box)).clip(-1, 1)
        np.testing.assert_allclose(to_tensor(read)[channel], expected, atol=1e-5)


def nan() -> np.ndarray:
    values = VALUES.astype(np.float32)
    values[3, 4, 1] = np.nan
    return values


BAD: dict[str, tuple[Callable[[], bytes], ReadingRules, str]] = {
    "NaN": (lambda: npy(nan()), RULES, "it holds NaN or infinity"),
    "outside": (
        lambda: npy(VALUES),
        ReadingRules(value_range=[0, 10000, 0, 10000, 0, 100, 0, 10000, 0, 10000]),
        r"its channel 2 has values from \d+ to \d+, outside of value_range 0 to 100; widen it, or set clip_values",
    ),
    "other channels": (lambda: npy(VALUES[..., :4]), RULES, "its array is of 12x20x4, and 5 channels are wanted"),
    "two readings": (
        lambda: npy(np.zeros((5, 8, 5))),
        RULES,
        "its array is of 5x8x5, so its first or its last axis may be the channels",
    ),
    "objects": (
        lambda: npy(np.full((4, 4, 5), None)),
        RULES,
        "its values are of type object, which are no real numbers",
    ),
    "words": (lambda: npy(np.full((4, 4, 5), "a")), RULES, "its values are of type <U1, which are no real numbers"),
    "four axes": (lambda: npy(VALUES[None]), RULES, "its array has 4 axes; a picture has rows, columns"),
    "several": (
        lambda: npz(a=VALUES, b=VALUES),
        RULES,
        "it holds the arrays a, b; one must be alone, or called image",
    ),
    "large": (
        lambda: npy(VALUES),
        ReadingRules(value_range=[0, 10000], max_pixels=200),
        "its 20x12 pixels of 5 channels are more than max_pixels, which is 200",
    ),
    "a palette": (
        lambda: png(np.zeros((4, 4), bool)),
        RULES,
        r"its pixels \(mode 1 of 1 bits\) aren't stored as the numbers of its channels",
    ),
    "cut off": (lambda: npy(VALUES)[:-100], RULES, "."),
    "a cut archive": (lambda: npz(image=VALUES)[:-100], RULES, "."),
    "a cut TIFF": (lambda: tiff(VALUES, planarconfig="contig")[:300], RULES, "."),
    "nothing": (lambda: b"", RULES, "it is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_such_image_is_unreadable_in_one_line(name: str, tmp_path: Path) -> None:
    make, rules, reason = BAD[name]
    (tmp_path / "x").write_bytes(make())
    for source in (make(), tmp_path / "x"):
        with pytest.raises(UnreadableImage, match=reason) as raised:
            decode_image(source, channels=5, rules=rules)
        assert "\n" not in str(raised.value)


def test_values_outside_are_clipped_where_that_is_asked_for() -> None:
    rules = ReadingRules(value_range=[100, 5000], clip_values=True)
    read = np.asarray(to_tensor(decode_image(npy(VALUES), channels=5, rules=rules)))
    expected = 2 * (VALUES.astype(float).clip(100, 5000) - 100) / 4900 - 1
    np.testing.assert_allclose(read.transpose(1, 2, 0), expected, atol=1e-6)
    assert (read.min(), read.max()) == (-1, 1)


def test_arrays_are_images_once_their_range_is_declared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", VALUES)
    (tmp_path / "bad.npy").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"holds no image, but 4 \.npy \(value_range makes arrays images\)"):
        open_collection(str(tmp_path))
    with pytest.raises(ValueError, match=r"names files with the endings \.npy; value_range makes arrays images"):
        open_collection(str(tmp_path / "1.npy"))
    collection = open_collection(str(tmp_path), rules=RULES)
    assert len(collection) == 4
    assert collection.size(1, channels=5) == (WIDTH, HEIGHT)
    images = TrainingImages(
        collection, Augmentation(seed=0, channels=5, resolution=8, latent_channels=1, spatial_factor=8)
    )
    samples = [images[k] for k in range(8)]
    assert {skipped.name for sample in samples for skipped in sample.skipped} == {"bad.npy"}
    assert all(sample.image.shape == (5, 8, 8) for sample in samples)
    capsys.readouterr()
    assert len(open_collection(str(tmp_path / "*.npy"), rules=RULES)) == 4


def test_flipped_numbers_are_mirrored(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    images = TrainingImages(
        open_collection(str(tmp_path), rules=RULES),
        Augmentation(seed=0, channels=5, resolution=12, latent_channels=1, spatial_factor=4, crop="center"),
    )
    box = crop_box((WIDTH, HEIGHT), resolution=12, crop="center")
    plain = to_tensor(read_crop(tmp_path / "x.npy", channels=5, resolution=12, box_of=lambda _: box, rules=RULES))
    seen = [images[k].image for k in range(12)]
    assert {torch.equal(image, plain) for image in seen} == {True, False}
    assert all(torch.equal(image, plain) or torch.equal(image, plain.flip(-1)) for image in seen)


@pytest.mark.parametrize("value_range", [[1.0], [2.0, 1.0], [0.0, 1.0, 3.0]])
def test_a_range_goes_from_its_lowest_to_its_highest_value(value_range: list[float]) -> None:
    with pytest.raises(FieldError, match=r"value_range is .*it must be the lowest and the highest value"):
        ReadingRules(value_range=value_range)
