from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.decoding import decode_image, read_crop, upright_size
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.limits import LimitedBytes
from tests.pictures import encoded, noise, smooth_picture


def test_pixels_count_at_the_size_that_is_decoded() -> None:
    picture = smooth_picture(400, 300)
    few = ReadingRules(max_pixels=30_000)
    for fmt in ("PNG", "WEBP", "TIFF", "GIF", "BMP"):
        with pytest.raises(UnreadableImage, match="400x300 pixels are more than max_pixels, which is 30000"):
            decode_image(encoded(picture, fmt), channels=3, rules=few)
    jpeg = encoded(picture, "JPEG")
    with pytest.raises(UnreadableImage, match="more than max_pixels"):
        decode_image(jpeg, channels=3, rules=few)
    crop = read_crop(jpeg, channels=3, resolution=50, box_of=lambda size: (0, 0, 300, 300), rules=few)
    assert crop.size == (50, 50)
    assert decode_image(jpeg, channels=3, rules=ReadingRules(max_pixels=120_000)).size == (400, 300)


def test_a_header_that_claims_absurd_sizes_allocates_nothing() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    gif = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    for content in (b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""), bytes(gif), b"P6 99999 99999 255\n"):
        for read in (decode_image, None):
            with pytest.raises(UnreadableImage, match="max_pixels"):
                decode_image(content, channels=3) if read else upright_size(content, channels=3)


def progressive(scans: int) -> bytes:
    """Return a progressive JPEG whose last scan is there again and again."""
    content = encoded(smooth_picture(64, 64), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_skipped() -> None:
    assert decode_image(progressive(5), channels=3).size == (64, 64)
    with pytest.raises(UnreadableImage, match=r"JPEG of 4\d\d scans"):
        decode_image(progressive(400), channels=3)


def test_decoding_ends_when_its_seconds_are_used_up() -> None:
    content = encoded(Image.fromarray(noise(400, 400, 3)), "PNG")
    assert decode_image(content, channels=3, rules=ReadingRules(max_decode_seconds=10)).size == (400, 400)
    with pytest.raises(UnreadableImage, match="takes more than max_decode_seconds, which is 1e-09"):
        decode_image(content, channels=3, rules=ReadingRules(max_decode_seconds=1e-9))
    file = LimitedBytes(b"abc")
    file.begin(ReadingRules(max_decode_seconds=100))
    assert file.read() == b"abc"


def test_pipes_devices_and_folders_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path, reason in (
        (tmp_path / "pipe.png", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (tmp_path / "folder.png", "a folder"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            decode_image(path, channels=3)
        with pytest.raises(UnreadableImage, match=reason):
            upright_size(path, channels=3)


def test_libtiff_writes_nothing_of_its_own(tmp_path: Path) -> None:
    content = bytearray(encoded(Image.fromarray(noise(64, 64, 3)), "TIFF", compression="tiff_adobe_deflate"))
    content[200:1200] = bytes(1000)
    (tmp_path / "bad.tif").write_bytes(content)
    program = (
        "import sys; from ldm_vae.images.decoding import decode_image\n"
        "from ldm_vae.images.guard import UnreadableImage\n"
        "try: decode_image(sys.argv[1], channels=3)\n"
        "except UnreadableImage: print('skipped')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "bad.tif")], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("skipped\n", "")


def test_names_are_escaped_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\nb.png"
    path.write_bytes(b"x")
    with pytest.raises(UnreadableImage) as caught:
        decode_image(path, channels=3)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (
        np.asarray(decode_image(io.BytesIO(encoded(Image.new("L", (2, 2), 3), "PNG")).getvalue(), channels=1)).max()
        == 3
    )


@pytest.mark.parametrize("compressed", [True, False])
def test_text_in_a_png_costs_no_picture(compressed: bool) -> None:
    text = PngImagePlugin.PngInfo()
    for _ in range(3):
        text.add_text("workflow", "x" * 30_000_000, zip=compressed)
    picture = smooth_picture(8, 8)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=text)
    assert decode_image(buffer.getvalue(), channels=3).tobytes() == picture.tobytes()
