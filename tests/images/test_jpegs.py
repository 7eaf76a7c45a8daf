"""JPEG files for another decoder: which are handed over, and resizing on tensors beside Pillow's."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images import resampling
from ldm_vae.images.decoding import read_crop
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.jpegs import JpegCrop, JpegFiles, jpeg_crop
from ldm_vae.images.resampling import resize_pixels
from ldm_vae.images.transforms import Box, Size
from tests.pictures import encoded, noise, picture

WHOLE = ReadingRules()


def crop_of(
    content: bytes, *, side: int = 16, channels: int = 3, box: Box | None = None, rules: ReadingRules = WHOLE
) -> JpegCrop | None:
    def box_of(size: Size) -> Box:
        return box or (0.0, 0.0, float(size[0]), float(size[1]))

    return jpeg_crop(content, channels=channels, resolution=(side, side), box_of=box_of, name="a.jpg", rules=rules)


@pytest.mark.parametrize("at_once", [1 << 25, 1 << 9], ids=["at once", "in parts"])
def test_resizing_is_pillows_bit_by_bit(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_MOST_PRODUCTS", at_once)
    rng = np.random.default_rng(0)
    for number in range(60):
        width, height, wide, high = (int(n) for n in rng.integers(1, 70, size=4))
        pixels = noise(height, width, 3, seed=number)  # whose overshoot is clipped
        left, top = rng.uniform(0, width - 0.5), rng.uniform(0, height - 0.5)
        right, bottom = rng.uniform(left + 0.3, width), rng.uniform(top + 0.3, height)
        box = (0.0, 0.0, float(width), float(height)) if number % 3 == 0 else (left, top, right, bottom)
        found = resize_pixels(torch.from_numpy(pixels).permute(2, 0, 1), box, size=(wide, high))
        expected = Image.fromarray(pixels).resize((wide, high), Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected)), (width, height, box, wide, high)


def renumbered(content: bytes) -> bytes:
    """Return a JPEG whose components are called R, G and B, as they are where they mean that."""
    at = content.index(b"\xff\xc0")
    changed = bytearray(content)
    for component, name in enumerate(b"RGB"):
        changed[at + 10 + 3 * component] = name
    scan = content.index(b"\xff\xda")
    for component, name in enumerate(b"RGB"):
        changed[scan + 5 + 2 * component] = name
    return bytes(changed)


def with_sampling(content: bytes, across: int, down: int) -> bytes:
    """Return a JPEG whose header says that there are so many samples of luma for one of chroma."""
    at = content.index(b"\xff\xc0") + 11
    return content[:at] + bytes([across << 4 | down]) + content[at + 1 :]


def with_adobe(content: bytes, transform: int) -> bytes:
    """Return a JPEG with Adobe's marker, in which 0 says that the components are red, green and blue."""
    return content[:2] + b"\xff\xee\x00\x0eAdobe" + struct.pack(">HHHB", 100, 0, 0, transform) + content[2:]


UPRIGHT, TURNED = (b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0%c\0\0\0\0\0\0" % number for number in (1, 6))
COLOURS, GREYS = picture(1), picture(2, mode="L")
FINE = encoded(COLOURS, "JPEG", subsampling=0)
PLAIN = {
    "4:4:4": FINE,
    "4:2:2": encoded(COLOURS, "JPEG", subsampling=1),
    "4:2:0": encoded(COLOURS, "JPEG", subsampling=2),
    "progressive": encoded(COLOURS, "JPEG", progressive=True),
    "grey": encoded(GREYS, "JPEG"),
    "upright": encoded(COLOURS, "JPEG", exif=UPRIGHT),
    "Adobe's marker": with_adobe(FINE, 1),
    "bytes behind": FINE + b"more",
}
OTHERS = {
    "turned": encoded(COLOURS, "JPEG", exif=TURNED),
    "four inks": encoded(COLOURS.convert("CMYK"), "JPEG"),
    "red, green and blue": with_adobe(FINE, 0),
    "names of colours": renumbered(FINE),
    "4:1:1": with_sampling(PLAIN["4:2:2"], 4, 1),
    "several pictures": encoded(COLOURS, "MPO", save_all=True, append_images=[picture(3)]),
    "a PNG": encoded(COLOURS, "PNG"),
    "cut off": FINE[:-40],
    "cut off behind a thumbnail": encoded(COLOURS, "JPEG", exif=b"Exif\0\0" + FINE)[:-40],
}


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_only_files_that_all_decoders_read_alike_are_handed_over(name: str) -> None:
    crop = crop_of({**PLAIN, **OTHERS}[name])
    assert (crop is not None) == (name in PLAIN)
    if crop is not None:
        assert crop == JpegCrop(content=PLAIN[name], size=(24, 20), box=(0.0, 0.0, 24.0, 20.0))


def test_what_pillow_reduces_what_has_alpha_and_what_is_too_large() -> None:
    large = encoded(picture(1, size=(96, 96)), "JPEG")
    assert crop_of(large, side=37) is not None  # 96 / 37 is less than 2 · 4/3
    assert crop_of(large, side=36) is None
    assert crop_of(large, side=36, box=(0.0, 0.0, 95.0, 96.0)) is not None
    assert crop_of(FINE, channels=1) is not None
    assert crop_of(FINE, channels=4) is None
    assert crop_of(FINE, rules=ReadingRules(value_range=[0.0, 255.0])) is None
    rules = ReadingRules(max_pixels=24 * 20 - 1)
    with pytest.raises(UnreadableImage) as ours:
        crop_of(FINE, rules=rules)
    with pytest.raises(UnreadableImage) as theirs:
        read_crop(FINE, channels=3, resolution=16, box_of=lambda size: (0, 0, *size), name="a.jpg", rules=rules)
    assert str(ours.value) == str(theirs.value)
    with pytest.raises(UnreadableImage, match="in no format"):
        crop_of(b"no picture")


def test_files_of_a_batch_are_one_tensor() -> None:
    assert JpegFiles.of({}) is None
    first, second = crop_of(FINE), crop_of(PLAIN["grey"])
    assert first is not None
    assert second is not None
    files = JpegFiles.of({1: first, 4: second})
    assert files is not None
    assert files.places == [1, 4]
    pictures = [Image.open(io.BytesIO(part.numpy().tobytes())) for part in files.content.split(files.lengths)]
    assert [image.mode for image in pictures] == ["RGB", "L"]
