"""`encode` in aspect-ratio buckets, and from streams."""

import io
import json
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL.Image import Image as PictureFile

from ldm_vae.config.commands.latents import LatentsVerifyOptions
from ldm_vae.encoding.buckets import bucket_sizes, covering_box
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.verify import verify
from ldm_vae.images import decoding
from ldm_vae.images.buckets import nearest_bucket
from ldm_vae.latents.dataset import LatentDataset
from tests.encodings import contents, finish, moments, options, square, start_encodes
from tests.pictures import picture

SIZES = [(40, 20), (20, 40), (30, 30), (41, 20), (25, 24), (20, 41), (64, 20), (31, 30), (40, 21)]


def test_bucket_sizes() -> None:
    assert bucket_sizes(256, step=64, max_aspect=2) == [(192, 320), (256, 256), (320, 192)]
    for width, height in bucket_sizes(1024, step=64, max_aspect=2):
        assert width % 64 == height % 64 == 0
        assert max(width, height) <= 2 * min(width, height)
        assert width * height <= 1024 * 1024 < (min(width, height) + 64) * max(width, height)
    assert covering_box((100, 50), size=(64, 64)) == (25, 0, 75, 50)
    assert covering_box((60, 90), size=(64, 128)) == (7.5, 0, 52.5, 90)


def test_a_picture_is_in_the_bucket_of_the_nearest_quotient() -> None:
    """So that upright pictures are treated as lying ones are; plain differences of ratios would put 1.3 elsewhere."""
    sizes = bucket_sizes(256, step=64, max_aspect=2)
    for side, bucket in ((128, (256, 256)), (131, (320, 192)), (400, (320, 192))):
        assert nearest_bucket((side, 100), sizes=sizes) == bucket
        assert nearest_bucket((100, side), sizes=sizes) == bucket[::-1]


def test_buckets_hold_one_shape_a_shard(vae: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, size in enumerate(SIZES):
        picture(i, size=size).save(data / f"{i}.png")
    (data / "9.png").write_bytes(b"no image")
    arguments = options(vae, str(data), tmp_path / "out", buckets=True, bucket_step=4, shard_size=3, num_workers=1)
    encode(arguments)
    dataset = LatentDataset(tmp_path / "out", normalize="none")
    shapes = [dataset.shape(rows.start) for rows in dataset.shard_rows() if len(rows)]
    assert shapes == [(4, 10, 6), (4, 8, 8), (4, 6, 10), (4, 6, 10)]
    for row in range(len(dataset)):
        line = dataset.row(row)
        image = line.get("image", line["sample"])
        _, h, w = dataset.shape(row)
        assert line["source"] == f"{image}.png"
        assert line["sample"] // 3 == int(line["shard"][8:13])
        original, size = picture(image, size=SIZES[image]), (2 * w, 2 * h)
        cropped = square(original) if w == h else original.resize(size, 3, box=covering_box(original.size, size=size))
        torch.testing.assert_close(dataset[row].latents, moments(vae, cropped)[0], rtol=1e-4, atol=1e-5)
    assert {dataset.row(row)["source"] for row in range(len(dataset))} == {f"{i}.png" for i in range(9)}

    picture(50, size=(20, 40)).save(data / "0.png")  # of another shape now, so of another bucket
    encode(arguments)
    changed = LatentDataset(tmp_path / "out", normalize="none")
    line = next(line for line in changed.rows() if line["source"] == "0.png")
    assert changed.shape(line["row"]) == (4, 10, 6)
    verify(LatentsVerifyOptions(latents=str(tmp_path / "out"), deep=True, vae=vae, data=str(data)))
    fresh = options(vae, str(data), tmp_path / "fresh", buckets=True, bucket_step=4, shard_size=3)
    encode(fresh)
    assert contents(tmp_path / "fresh") == contents(tmp_path / "out")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, format="PNG")
    return file.getvalue()


def save_parquet(folder: Path, *, counts: list[int]) -> str:
    folder.mkdir()
    features = Features({"image": Image(), "label": Value("int64"), "text": Value("string")})
    number = 0
    for file, count in enumerate(counts):
        images = [{"bytes": png(number + i) if number + i != 3 else b"bad", "path": None} for i in range(count)]
        rows = {"image": images, "label": [number + i for i in range(count)], "text": ["é"] * count}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"train-{file:05d}.parquet")
        number += count
    return str(folder)


def test_a_stream_is_shared_by_input_file(vae: str, tmp_path: Path) -> None:
    data = save_parquet(tmp_path / "data", counts=[5, 8, 1])
    arguments = options(vae, data, tmp_path / "out", streaming=True)
    summary = encode(arguments)
    assert (summary.num_images, summary.num_rows, summary.num_skipped, summary.num_shards) == (14, 13, 1, 5)
    dataset = LatentDataset(tmp_path / "out", normalize="none")
    for row in range(13):
        number = row + (row >= 3)
        assert dataset[row].label == number
        assert dataset.row(row)["columns"] == {"text": "é"}
        torch.testing.assert_close(
            dataset[row].latents, moments(vae, square(picture(number)))[0], rtol=1e-4, atol=1e-5
        )
    assert [json.loads(line)["source"] for line in (tmp_path / "out" / "skipped.jsonl").open()] == ["file 0 row 3"]

    before = contents(tmp_path / "out")
    for name in ("latents-00001-00001.json", "latents-00002.end.json", "latents-00002-00000.json"):
        (tmp_path / "out" / name).unlink()  # killed in the middle of two files
    assert encode(arguments).encoded_images == 5
    assert contents(tmp_path / "out") == before
    assert finish(start_encodes(options(vae, data, tmp_path / "two", streaming=True), count=2)) == [0, 0]
    assert contents(tmp_path / "two") == before
    encode(options(vae, data, tmp_path / "workers", streaming=True, num_workers=2))
    assert contents(tmp_path / "workers") == before


def test_a_file_of_a_stream_that_can_not_be_read_is_named(vae: str, tmp_path: Path) -> None:
    """What the others hold stays, and the same encode does the rest once it is there."""
    data = tmp_path / "data"
    data.mkdir()
    features = Features({"image": Image()})
    for file in range(2):
        pictures = [picture(5 * file + i) for i in range(5)]
        Dataset.from_dict({"image": pictures}, features=features).to_parquet(data / f"{file}.parquet")
    whole = (data / "1.parquet").read_bytes()
    (data / "1.parquet").write_bytes(b"PAR1 damaged")
    asked = options(vae, str(data), tmp_path / "out", streaming=True)
    with pytest.raises(
        RuntimeError,
        match=r"^reading .*data broke off: 1\.parquet, 12 bytes, 3 times behind row 0: .*; what is encoded",
    ):
        encode(asked)
    assert (tmp_path / "out" / "latents-00000-00001.json").exists()
    (data / "1.parquet").write_bytes(whole)
    assert encode(asked).encoded_images == 5
    assert [sample.sample % 2**32 for sample in LatentDataset(tmp_path / "out")] == [0, 1, 2, 3, 4] * 2


def test_a_picture_that_kills_a_worker_of_a_stream_costs_that_picture(
    vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = save_parquet(tmp_path / "data", counts=[5, 9, 1])
    bad, convert = picture(10).tobytes(), decoding.to_channels

    def convert_or_die(image: PictureFile, **arguments: Any) -> PictureFile:
        if image.tobytes() == bad:
            os.kill(os.getpid(), signal.SIGKILL)
        return convert(image, **arguments)

    encode(options(vae, data, tmp_path / "whole", streaming=True, num_workers=2))
    monkeypatch.setattr(decoding, "to_channels", convert_or_die)
    summary = encode(options(vae, data, tmp_path / "out", streaming=True, num_workers=2))
    assert (summary.num_rows, summary.num_skipped) == (13, 2)
    whole, found = (LatentDataset(tmp_path / name, normalize="none") for name in ("whole", "out"))
    rows = [row for row in range(14) if whole[row].label != 10]
    assert [found[row].label for row in range(13)] == [whole[row].label for row in rows]
    for row, like in enumerate(rows):
        torch.testing.assert_close(found[row].latents, whole[like].latents, rtol=1e-4, atol=1e-5)
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").open()]
    assert [line["source"] for line in skipped] == ["file 0 row 3", "file 1 row 5"]
    assert "died" in skipped[1]["reason"]


def test_parquet_with_random_access_and_webdataset(vae: str, tmp_path: Path) -> None:
    data = save_parquet(tmp_path / "data", counts=[5, 4])
    encode(options(vae, data, tmp_path / "out", detect_changes="digest", num_workers=1))
    dataset = LatentDataset(tmp_path / "out", normalize="none")
    assert [dataset[row].label for row in range(len(dataset))] == [0, 1, 2, 4, 5, 6, 7, 8]
    torch.testing.assert_close(dataset[7].latents, moments(vae, square(picture(8)))[0], rtol=1e-4, atol=1e-5)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for i in range(3):
            for name, content in ((f"{i}.png", png(i)), (f"{i}.json", json.dumps({"caption": f"c{i}"}).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    encode(options(vae, str(tmp_path / "photos.tar"), tmp_path / "tar", streaming=True))
    dataset = LatentDataset(tmp_path / "tar", normalize="none")
    assert dataset.row(2)["columns"]["json"] == {"caption": "c2"}
    torch.testing.assert_close(dataset[2].latents, moments(vae, square(picture(2)))[0], rtol=1e-4, atol=1e-5)
