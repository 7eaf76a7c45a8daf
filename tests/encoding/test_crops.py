"""`encode --crops`: several squares of each image, as rows that follow each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ldm_vae.config.commands.decode import DecodeOptions
from ldm_vae.config.commands.latents import LatentsVerifyOptions
from ldm_vae.encoding.decode import decode
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.verify import verify
from ldm_vae.latents.dataset import LatentDataset
from tests.encodings import RESOLUTION, contents, moments, options
from tests.images.test_addresses import write_tars
from tests.pictures import picture

SIZES = [(40, 20), (20, 51), (24, 24)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate(SIZES):
        picture(i, size=size).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no image")
    return folder


def crop(image: Image.Image, number: int) -> Image.Image:
    """Return one of three squares along the long side, in whole pixels of the resized picture."""
    short, long = min(image.size), max(image.size)
    pixel = short / RESOLUTION
    start = int((long - short) / pixel) * number // 2 * pixel
    box = (start, 0, start + short, short) if image.width > image.height else (0, start, short, start + short)
    return image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC, box=box)


def test_rows_are_squares_along_the_long_side(vae: str, photos: Path, tmp_path: Path) -> None:
    summary = encode(options(vae, str(photos), tmp_path / "out", crops=3))
    assert str(summary).startswith(f"{tmp_path / 'out'}: 9 latents of 4 images, 3 crops each, in 3 shards")
    assert (summary.num_images, summary.num_rows, summary.num_skipped) == (4, 9, 3)
    dataset = LatentDataset(tmp_path / "out", normalize="none")
    for row in range(9):
        mean, _ = moments(vae, crop(picture(row // 3, size=SIZES[row // 3]), row % 3))
        assert (dataset[row].latents - mean).abs().max() < 1e-5
        line = dataset.row(row)
        assert (line["sample"], line.get("image", line["sample"]), line["source"]) == (
            row,
            row // 3,
            f"{row // 3}.png",
        )
    check = LatentsVerifyOptions(latents=str(tmp_path / "out"), deep=True, vae=vae, data=str(photos))
    assert verify(check).deep_images == 9
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "latents-00001.json").unlink()
    assert encode(options(vae, str(photos), tmp_path / "out", crops=3)).encoded_images == 4
    assert contents(tmp_path / "out") == whole
    with pytest.raises(ValueError, match=r"preprocessing\.crops: 3 there, null here"):
        encode(options(vae, str(photos), tmp_path / "out"))
    decode(DecodeOptions(vae=vae, latents=str(tmp_path / "out"), output=str(tmp_path / "decoded"), num_images=2))
    assert {path.name for path in (tmp_path / "decoded").glob("*.png")} == {
        "sample-00000000.png",
        "sample-00000001.png",
    }


def test_a_stream_has_the_same(vae: str, photos: Path, tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", [(photos / f"{i}.png").read_bytes() for i in range(4)])
    encode(options(vae, str(photos), tmp_path / "folder", crops=3))
    encode(options(vae, str(tmp_path / "tars"), tmp_path / "stream", crops=3, streaming=True, shard_size=2))
    one, other = (LatentDataset(tmp_path / name, normalize="none") for name in ("folder", "stream"))
    assert len(other) == 9
    for row in range(9):
        assert (one[row].latents - other[row].latents).abs().max() < 1e-5
        file, number = divmod(row // 3, 2)
        line = other.row(row)
        assert line.get("image", line["sample"]) == (file << 32) + number


def test_what_has_no_several_squares(vae: str) -> None:
    with pytest.raises(ValueError, match="crops is 2, but buckets keep nearly all of an image"):
        options(vae, "photos", "out", crops=2, buckets=True, bucket_step=4)
    with pytest.raises(ValueError, match="crops is for images, but mel_frames says that the data are sounds"):
        options(vae, "sounds", "out", crops=2, mel_frames=16)
