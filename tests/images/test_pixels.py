"""What a file's numbers mean: each expected value follows from the format's definition, not from Pillow."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm_vae.images.decoding import decode_image
from ldm_vae.images.guard import UnreadableImage
from tests.pictures import encoded


def tiff(values: bytes, *, bits: list[int], photometric: int = 1, width: int, **tags: int | list[int]) -> bytes:
    """Return an uncompressed little-endian TIFF of one row."""
    numbers = {256: [width], 257: [1], 258: bits, 259: [1], 262: [photometric], 277: [len(bits)], 278: [1]}
    numbers |= {int(name[1:]): value if isinstance(value, list) else [value] for name, value in tags.items()}
    numbers |= {273: [0], 279: [len(values)]}
    start = 8 + 2 + 12 * len(numbers) + 4
    extra, entries = b"", b""
    numbers[273] = [start]
    outside = {tag: value for tag, value in numbers.items() if len(value) > 2}
    numbers[273] = [start + sum(2 * len(value) for value in outside.values())]
    for tag, value in sorted(numbers.items()):
        if len(value) > 2:
            entries += struct.pack("<HHII", tag, 3, len(value), start + len(extra))
            extra += struct.pack(f"<{len(value)}H", *value)
        elif tag in (273, 279):
            entries += struct.pack("<HHII", tag, 4, 1, value[0])
        else:
            entries += struct.pack("<HHI", tag, 3, len(value)) + struct.pack("<HH", *[*value, 0][:2])
    return struct.pack("<2sHIH", b"II", 42, 8, len(numbers)) + entries + b"\0" * 4 + extra + values


def png(rows: bytes, *, size: tuple[int, int], depth: int, color: int, transparent: bytes) -> bytes:
    """Return a PNG with a tRNS chunk; `rows` is one row without its filter byte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    data = zlib.compress((b"\0" + rows) * size[1])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", transparent)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def grey(content: bytes) -> list[int]:
    return np.asarray(decode_image(content, channels=1))[0].tolist()


def rgba(content: bytes) -> list[list[int]]:
    return np.asarray(decode_image(content, channels=4))[0].tolist()


def u16(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def test_grey_of_12_bits_is_scaled_by_4095() -> None:
    assert grey(tiff(bytes([0x40, 0x0C, 0x00, 0xFF, 0xF0, 0x08]), bits=[12], width=4)) == [64, 191, 255, 0]


def test_grey_where_zero_is_white() -> None:
    assert grey(tiff(u16(0, 65535, 257), bits=[16], photometric=0, width=3)) == [255, 0, 254]
    assert grey(tiff(bytes([0, 255, 1]), bits=[8], photometric=0, width=3)) == [255, 0, 254]
    assert grey(tiff(bytes([0b01000000]), bits=[1], photometric=0, width=2)) == [255, 0]
    assert grey(tiff(bytes([0x0F, 0x10]), bits=[4], photometric=0, width=3)) == [255, 0, 238]


def test_signed_integers() -> None:
    assert grey(tiff(u16(0, 32767, 16384), bits=[16], width=3, t339=2)) == [0, 255, 128]
    assert grey(tiff(bytes([0, 127, 64]), bits=[8], width=3, t339=2)) == [0, 255, 129]
    for content in (
        tiff(u16(0, 65535), bits=[16], width=2, t339=2),
        tiff(bytes([0, 200]), bits=[8], width=2, t339=2),
    ):
        with pytest.raises(UnreadableImage, match=r"black|white"):
            decode_image(content, channels=1)


@pytest.mark.parametrize("sample_format", [1, 2])
def test_32_bit_numbers_are_not_guessed(sample_format: int) -> None:
    values = struct.pack("<2I", 0, 200)
    with pytest.raises(UnreadableImage, match="integers of 32 bits"):
        decode_image(tiff(values, bits=[32], width=2, t339=sample_format), channels=1)
    with pytest.raises(UnreadableImage, match="floating-point"):
        decode_image(tiff(struct.pack("<2f", 0, 1), bits=[32], width=2, t339=3), channels=1)


def test_premultiplied_alpha_is_divided_out() -> None:
    half_grey = tiff(bytes([64, 128, 100, 255]), bits=[8, 8], width=2, t338=1)
    assert rgba(half_grey)[1] == [100, 100, 100, 255]
    assert abs(rgba(half_grey)[0][0] - 128) <= 1
    assert rgba(half_grey)[0][3] == 128
    assert np.asarray(decode_image(half_grey, channels=3))[0, 0].tolist() == [191, 191, 191]
    colour = tiff(bytes([64, 32, 0, 128]), bits=[8, 8, 8, 8], photometric=2, width=1, t338=1)
    assert np.abs(np.array(rgba(colour)[0]) - [128, 64, 0, 128]).max() <= 1
    straight = tiff(bytes([64, 128]), bits=[8, 8], width=1, t338=2)
    assert rgba(straight) == [[64, 64, 64, 128]]


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, bytes([0b01000000]), 1, [0, 255]),
        (1, bytes([0b01000000]), 0, [255, 255]),
        (2, bytes([0b01100000]), 1, [255, 170]),
        (4, bytes([0x38]), 3, [255, 136]),
        (8, bytes([51, 136]), 51, [255, 136]),
        (16, struct.pack(">2H", 300, 301), 300, [255, 1]),
    ],
)
def test_a_transparent_grey_is_given_in_the_files_depth(
    depth: int, row: bytes, transparent: int, expected: list[int]
) -> None:
    content = png(row, size=(2, 1), depth=depth, color=0, transparent=struct.pack(">H", transparent))
    assert grey(content) == expected


def test_a_transparent_colour_of_16_bits() -> None:
    row = struct.pack(">6H", 300, 2, 3, 301, 2, 3)
    content = png(row, size=(2, 1), depth=16, color=2, transparent=struct.pack(">3H", 300, 2, 3))
    assert [pixel[3] for pixel in rgba(content)] == [0, 255]
    content = png(bytes([1, 2, 3, 1, 2, 4]), size=(2, 1), depth=8, color=2, transparent=struct.pack(">3H", 1, 2, 3))
    assert [pixel[3] for pixel in rgba(content)] == [0, 255]


def test_other_colour_spaces() -> None:
    lab = tiff(bytes([255, 0, 0, 0, 0, 0]), bits=[8, 8, 8], photometric=8, width=2)
    white, black = np.asarray(decode_image(lab, channels=3))[0].astype(int)
    assert (white - 255).max() <= 2
    assert black.max() <= 2
    ycbcr = tiff(bytes([255, 128, 128, 76, 85, 255]), bits=[8, 8, 8], photometric=6, width=2, t530=[1, 1])
    white, red = np.asarray(decode_image(ycbcr, channels=3))[0].astype(int)
    assert white.tolist() == [255, 255, 255]
    assert np.abs(red - [255, 0, 0]).max() <= 2
    cmyk = tiff(bytes([0, 0, 0, 0, 0, 0, 0, 255]), bits=[8, 8, 8, 8], photometric=5, width=2)
    assert np.asarray(decode_image(cmyk, channels=3))[0].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_palettes_with_alpha() -> None:
    colours = [0] * 768
    colours[1], colours[257], colours[513] = 200 * 257, 10 * 257, 0
    content = tiff(bytes([1, 128, 0, 255]), bits=[8, 8], photometric=3, width=2, t338=2, t320=colours)
    assert rgba(content) == [[200, 10, 0, 128], [0, 0, 0, 255]]


def test_only_listed_formats_are_opened(tmp_path: object) -> None:
    for fmt in ("EPS", "PCX", "DDS", "ICNS", "IM"):
        with pytest.raises(UnreadableImage, match="no format that is read here"):
            decode_image(encoded(Image.new("RGB", (16, 16)), fmt), channels=3)
