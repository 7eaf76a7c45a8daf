from __future__ import annotations

import io
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.images.decoding import decode_image, read_crop, upright_size
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.transforms import crop_box, resize_crop
from tests.pictures import encoded, noise, psnr, smooth_picture

TO_STORED = {  # the inverse of what each EXIF orientation asks for
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def pixels(content: bytes, channels: int) -> np.ndarray:
    return np.asarray(decode_image(content, channels=channels)).astype(int)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_the_one_asked_for(mode: str, channels: int) -> None:
    image = Image.new(mode, (7, 5)) if mode.startswith("I") else Image.fromarray(noise(5, 7, 3)).convert(mode)
    picture = decode_image(encoded(image, "TIFF"), channels=channels)
    assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert picture.size == (7, 5)


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(fmt: str) -> None:
    values = np.array([[0, 128, 129, 257, 300, 32768, 65278, 65535]], dtype=np.uint16)
    content = encoded(Image.fromarray(values), fmt)
    expected = np.round(values / 257)
    assert pixels(content, 1).tolist() == expected.tolist()
    assert pixels(content, 3)[..., 2].tolist() == expected.tolist()


def test_transparency_is_kept_for_4_channels_and_laid_on_white_else() -> None:
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], dtype=np.uint8)
    content = encoded(Image.fromarray(rgba), "PNG")
    assert pixels(content, 4).tolist() == rgba.tolist()
    assert pixels(content, 3).tolist() == [[[255, 255, 255], [10, 20, 30], [127, 127, 127]]]
    assert pixels(content, 1).tolist() == [[255, 18, 127]]
    assert pixels(encoded(Image.fromarray(rgba[..., :3]), "PNG"), 4)[..., 3].tolist() == [[255, 255, 255]]
    grey_alpha = Image.merge("LA", [Image.new("L", (1, 1), 90), Image.new("L", (1, 1), 0)])
    assert pixels(encoded(grey_alpha, "PNG"), 1).tolist() == [[255]]


def test_transparent_palette_entries_and_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 100, 0])
    palette.putdata([0, 1])
    assert pixels(encoded(palette, "PNG"), 3).tolist() == [[[200, 0, 0], [0, 100, 0]]]
    see_through = encoded(palette, "PNG", transparency=0)
    assert pixels(see_through, 3).tolist() == [[[255, 255, 255], [0, 100, 0]]]
    assert pixels(see_through, 4).tolist() == [[[200, 0, 0, 0], [0, 100, 0, 255]]]
    assert pixels(encoded(palette, "GIF", transparency=1), 3).tolist() == [[[200, 0, 0], [255, 255, 255]]]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], dtype=np.uint8))
    assert pixels(encoded(keyed, "PNG", transparency=(1, 2, 3)), 3).tolist() == [[[255, 255, 255], [1, 2, 4]]]
    grey = Image.fromarray(np.array([[1000, 2570]], dtype=np.uint16))
    assert pixels(encoded(grey, "PNG", transparency=1000), 1).tolist() == [[255, 10]]


def test_cmyk_grey_and_colour_jpegs() -> None:
    for ink, colour in (((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 255, 0), (255, 255, 0)), ((0, 0, 0, 255), (0, 0, 0))):
        content = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        assert np.abs(pixels(content, 3) - colour).max() <= 4
    picture = smooth_picture(64, 48)
    content = encoded(picture, "JPEG", quality=95)
    luma = np.asarray(Image.open(io.BytesIO(content)).convert("L"), dtype=int)
    assert np.abs(pixels(content, 1) - luma).max() <= 2
    grey = encoded(picture.convert("L"), "JPEG", quality=95)
    assert pixels(grey, 3)[..., 1].tolist() == pixels(grey, 1).tolist()


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (50, 100, 150)]
    for fmt in ("GIF", "PNG", "TIFF"):
        assert pixels(encoded(frames[0], fmt, save_all=True, append_images=frames[1:]), 3)[0, 0].tolist() == [50, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("fmt", "size"), [("PNG", (36, 24)), ("TIFF", (36, 24)), ("JPEG", (480, 320))])
def test_pictures_stand_upright_and_crops_are_of_the_upright_picture(
    fmt: str, size: tuple[int, int], orientation: int
) -> None:
    upright = smooth_picture(*size)
    turn = TO_STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(upright if turn is None else upright.transpose(turn), fmt, exif=exif, quality=95)
    exact = float("inf") if fmt != "JPEG" else 33.0
    assert upright_size(content, channels=3) == size
    assert psnr(decode_image(content, channels=3), upright) >= exact
    box = (size[0] / 2, 0.0, size[0] / 2 + size[1] / 2, size[1] / 2)
    seen_sizes = []

    def box_of(seen: tuple[int, int]) -> tuple[float, float, float, float]:
        seen_sizes.append(seen)
        return box

    crop = read_crop(content, channels=3, resolution=12, box_of=box_of)  # a JPEG is decoded at 1/8
    assert seen_sizes == [size]
    assert psnr(crop, resize_crop(upright, box, resolution=12)) >= exact


def test_broken_exif_is_ignored() -> None:
    picture = smooth_picture(40, 24)
    exif = b"Exif\x00\x00II*\x00\xff\xff\xff\x7f"
    assert decode_image(encoded(picture, "JPEG", exif=exif), channels=3).size == (40, 24)


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_large_jpegs_are_decoded_reduced_and_look_the_same(factor: int, subsampling: int) -> None:
    resolution = 90
    side = round(resolution * factor * 4 / 3) + 1  # the least that allows the factor
    content = encoded(smooth_picture(side + 40, side), "JPEG", quality=92, subsampling=subsampling)
    plain = Image.open(io.BytesIO(content)).convert("RGB")

    def compare(resolution: int) -> tuple[Image.Image, Image.Image]:
        def box_of(size: tuple[int, int]) -> tuple[float, float, float, float]:
            return crop_box(size, resolution=resolution, crop="center")

        crop = read_crop(content, channels=3, resolution=resolution, box_of=box_of)
        return crop, resize_crop(plain, box_of(plain.size), resolution=resolution)

    reduced, reference = compare(resolution)
    assert reduced.tobytes() != reference.tobytes()
    assert psnr(reduced, reference) >= 40
    if factor == 2:
        full, reference = compare(resolution + 2)
        assert full.tobytes() == reference.tobytes()


def truncated(fmt: str) -> bytes:
    content = encoded(smooth_picture(64, 64), fmt)
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "no format that is read here"),
        (truncated("JPEG"), "truncated"),
        (truncated("PNG"), "truncated"),
        (truncated("WEBP"), "decoder"),
        (truncated("GIF"), "truncated"),
        (b"P4 20000 20000\n" + bytes(100), "claims more pixels than max_pixels"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF"), "integers of 32 bits"),
    ],
)
def test_bad_files_say_why_in_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode_image(path, channels=3)
    assert caught.value.name == str(path)
    assert caught.value.reason in str(caught.value)
    assert "\n" not in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.name, copy.reason) == (caught.value.name, caught.value.reason)
    with pytest.raises(UnreadableImage, match=reason):
        read_crop(content, channels=3, resolution=8, box_of=lambda size: (0, 0, 1, 1))


def test_a_missing_file_is_the_images_fault_but_too_many_open_files_are_not(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        decode_image(tmp_path / "gone.png", channels=3)
    path = tmp_path / "good.png"
    Image.new("RGB", (4, 4)).save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(OSError, match="Too many open files"):
            decode_image(path, channels=3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert decode_image(path, channels=3).size == (4, 4)
