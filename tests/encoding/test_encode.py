"""`encode` on a tiny autoencoder: each latent against diffusers itself, and what is refused, skipped and redone."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.system.randomness import sample_rng
from tests.encodings import contents, moments, options, save_vae, square
from tests.pictures import picture, save_pictures


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vae(tmp_path_factory.mktemp("vae"), shift_factor=0.1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pictures(tmp_path_factory.mktemp("data") / "photos", count=10)


def close(latents: Tensor, expected: Tensor) -> bool:
    return torch.allclose(latents, expected, rtol=1e-4, atol=1e-5)


def test_every_row_is_what_diffusers_gives(vae: str, photos: str, tmp_path: Path) -> None:
    summary = encode(options(vae, photos, tmp_path, num_workers=2, flip=True))
    assert (summary.num_images, summary.num_rows, summary.num_shards, summary.encoded_images) == (10, 10, 3, 10)
    dataset = LatentDataset(tmp_path, normalize="none")
    for row in range(10):
        image = square(picture(row))
        mean, std = moments(vae, image)
        mean_flip, _ = moments(vae, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        stored = dataset.moments(row)
        assert close(stored["mean"], mean)
        assert close(stored["std"], std)
        assert close(stored["mean_flip"], mean_flip)
        assert not close(stored["mean"], moments(vae, square(picture(row + 1)))[0])
        assert dataset.row(row)["source"] == f"{row:04d}.png"
    assert (dataset.index["vae"]["scaling_factor"], dataset.index["vae"]["shift_factor"]) == (0.18215, 0.1)
    assert [shard["count"] for shard in dataset.index["shards"]] == [4, 4, 2]


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha(tmp_path: Path, channels: int) -> None:
    vae = save_vae(tmp_path / "vae", in_channels=channels, out_channels=channels)
    mode = {1: "L", 4: "RGBA"}[channels]
    (tmp_path / "data").mkdir()
    picture(1, mode=mode).save(tmp_path / "data" / "a.png")
    encode(options(vae, str(tmp_path / "data"), tmp_path / "out"))
    mean = LatentDataset(tmp_path / "out", normalize="none")[0].latents
    assert close(mean, moments(vae, square(picture(1, mode=mode)))[0])


def test_samples_depend_on_the_image_and_the_seed_alone(vae: str, photos: str, tmp_path: Path) -> None:
    encode(options(vae, photos, tmp_path / "one", mode="sample", seed=5))
    encode(options(vae, photos, tmp_path / "other", mode="sample", seed=5, shard_size=7, batch_size=2, num_workers=2))
    encode(options(vae, photos, tmp_path / "seed", mode="sample", seed=6))
    one, other, seed = (LatentDataset(tmp_path / name, normalize="none") for name in ("one", "other", "seed"))
    for row in range(10):
        mean, std = moments(vae, square(picture(row)))
        rng = sample_rng(row, seed=5, stream="latents/sample")
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        assert close(one[row].latents, mean + std * noise)
        assert close(other[row].latents, one[row].latents)
        assert not close(seed[row].latents, one[row].latents)


def damage(folder: Path) -> tuple[dict[str, Image.Image], set[str]]:
    """Save pictures of many kinds among damaged files; return those as they look, and the names of these."""
    folder.mkdir()
    good: dict[str, Image.Image] = {}

    def save(name: str, image: Image.Image, **how: object) -> None:
        image.save(folder / name, **how)
        good[name] = image.convert("RGB")

    for i in range(30):
        save(f"{i:03d}.png", picture(i))
    save("same.png", picture(100))
    save("same.bmp", picture(101))
    save("with space é.png", picture(102))
    save("palette.png", picture(103).quantize(16))
    save("deep.png", Image.fromarray(np.asarray(picture(104, mode="L")).astype(np.uint16) * 257))
    good["deep.png"] = picture(104, mode="L").convert("RGB")
    save("cmyk.tif", picture(105).convert("CMYK"))
    save("animated.gif", picture(106).quantize(16), save_all=True, append_images=[picture(107).quantize(16)])
    save("broken exif.png", picture(108), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    for name, image, how in (
        ("rotated.jpg", picture(109), {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
        ("exif.jpg", picture(110), {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff"}),
        ("cmyk.jpg", picture(111).convert("CMYK"), {}),
    ):
        image.save(folder / name, **how)
        good[name] = ImageOps.exif_transpose(Image.open(folder / name)).convert("RGB")
    whole = (folder / "000.png").read_bytes()
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bad = {
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": (folder / "cmyk.jpg").read_bytes()[:-300],
        "empty.jpg": b"",
        "text.jpg": b"not an image at all",
        "0bomb.png": whole[:8] + bomb + whole[33:],
        "zeros.png": bytes(5000),
        "kein bild ü.webp": whole[:20],
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "c folder.jpg").symlink_to(folder / "nowhere.jpg")
    return good, {*bad, "c folder.jpg"}


def test_damaged_files_among_good_ones(vae: str, tmp_path: Path) -> None:
    good, bad = damage(tmp_path / "data")
    summary = encode(options(vae, str(tmp_path / "data"), tmp_path / "out", num_workers=1))
    assert (summary.num_rows, summary.num_skipped) == (len(good), len(bad))
    dataset = LatentDataset(tmp_path / "out", normalize="none")
    names = sorted([*good, *bad])
    rows = {line["source"]: line for line in dataset.rows()}
    assert rows.keys() == good.keys()
    assert rows["rotated.jpg"]["size"] == [20, 24]
    for name, image in good.items():
        line = rows[name]
        assert line["sample"] == names.index(name)
        assert line["shard"] == f"latents-{names.index(name) // 4:05d}.safetensors"
        assert dataset[line["row"]].sample == line["sample"]
        assert close(dataset[line["row"]].latents, moments(vae, square(image))[0]), name
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {line["source"] for line in skipped} == bad
    assert all(line["reason"] and line["sample"] == names.index(line["source"]) for line in skipped)
    assert [line["sample"] for line in skipped] == sorted(line["sample"] for line in skipped)
    assert encode(options(vae, str(tmp_path / "data"), tmp_path / "out")).encoded_images == 0
    with pytest.raises(UnreadableImage, match=r"0bomb\.png"):
        encode(options(vae, str(tmp_path / "data"), tmp_path / "strict", shard_size=64, strict=True))
    assert not (tmp_path / "strict" / "index.json").exists()


def test_labels_and_captions_are_kept(vae: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    captions = []
    for i, name in enumerate(("cat", "dog", "cat")):
        (data / name).mkdir(parents=True, exist_ok=True)
        picture(i).save(data / name / f"{i}.png")
        captions.append({"file_name": f"{name}/{i}.png", "caption": f"a {name} é {i}", "score": i / 3})
    (data / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in captions))
    encode(options(vae, str(data), tmp_path / "out"))
    dataset = LatentDataset(tmp_path / "out")
    rows = [dataset.row(row) for row in range(3)]
    assert [row["source"] for row in rows] == ["cat/0.png", "cat/2.png", "dog/1.png"]
    assert [dataset[row].label for row in range(3)] == [row["label"] for row in rows] == [0, 0, 1]
    assert [row["columns"] for row in rows] == [
        {"caption": captions[i]["caption"], "score": captions[i]["score"]} for i in (0, 2, 1)
    ]
    assert dataset.index["data"]["label_names"] == ["cat", "dog"]


def test_an_output_belongs_to_one_vae_and_one_preprocessing(vae: str, photos: str, tmp_path: Path) -> None:
    encode(options(vae, photos, tmp_path / "out"))
    before = contents(tmp_path / "out")
    other_vae = save_vae(tmp_path / "vae", seed=1)
    fewer = tmp_path / "fewer"
    shutil.copytree(photos, fewer)
    (fewer / "0003.png").unlink()
    refused = [
        (options(vae, photos, tmp_path / "out", resolution=18), "preprocessing.resolution: 16 there, 18 here"),
        (options(vae, photos, tmp_path / "out", mode="mean"), 'mode: "moments" there, "mean" here'),
        (options(vae, photos, tmp_path / "out", mixed_precision="bf16"), "preprocessing.precision"),
        (options(other_vae, photos, tmp_path / "out"), "vae.fingerprint"),
        (options(vae, str(fewer), tmp_path / "out"), "data.num_images: 10 there, 9 here"),
        (options(vae, photos, Path(photos)), "holds other things"),
    ]
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            encode(wrong)
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "mine.txt").write_text("kept")
    encode(options(other_vae, str(fewer), tmp_path / "out", mode="mean", overwrite=True))
    assert LatentDataset(tmp_path / "out").index["mode"] == "mean"
    assert len(LatentDataset(tmp_path / "out")) == 9
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_encoding_again_does_only_what_is_left(vae: str, photos: str, tmp_path: Path) -> None:
    encode(options(vae, photos, tmp_path))
    before = contents(tmp_path)
    assert encode(options(vae, photos, tmp_path)).encoded_images == 0
    (tmp_path / "latents-00001.safetensors").write_bytes(before["latents-00001.safetensors"][:-1])  # a bad disk
    (tmp_path / "latents-00002.json").unlink()  # killed before the record
    assert encode(options(vae, photos, tmp_path)).encoded_shards == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize("detect_changes", ["mtime", "digest", "off"])
def test_changed_sources_are_encoded_again(vae: str, photos: str, tmp_path: Path, detect_changes: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    arguments = options(vae, str(data), tmp_path / "out", detect_changes=detect_changes)
    encode(arguments)
    path = data / "0005.png"
    times = path.stat()
    picture(500).save(path)
    if detect_changes == "digest":  # only the content tells
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    summary = encode(arguments)
    assert summary.encoded_shards == (0 if detect_changes == "off" else 1)
    expected = picture(5 if detect_changes == "off" else 500)
    assert close(LatentDataset(tmp_path / "out", normalize="none")[5].latents, moments(vae, square(expected))[0])


def test_latents_that_overflow_are_refused_by_name(tmp_path: Path) -> None:
    vae = save_vae(tmp_path / "vae")
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["quant_conv.bias"][:4] = 1e5
    save_file(state, weights)
    data = save_pictures(tmp_path / "data", count=1)
    with pytest.raises(ValueError, match=r"0000\.png are no finite numbers in float16"):
        encode(options(vae, data, tmp_path / "out", dtype="float16"))
    assert encode(options(vae, data, tmp_path / "other")).num_rows == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shard_size": 0}, "shard_size is 0; it must be positive"),
        (
            {"resolution": 100, "buckets": True},
            "step of the buckets 64 does not divide; take 64 or 128",
        ),
        ({"buckets": True, "streaming": True}, "buckets needs the headers of all images first"),
    ],
)
def test_wrong_options_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodeOptions(**{"vae": "v", "data": "d", "output": "o", **wrong})


def test_a_resolution_that_the_factor_does_not_divide(vae: str, photos: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resolution is 17, which the VAE's factor 2 does not divide; take 16 or 18"):
        encode(options(vae, photos, tmp_path, resolution=17))


def test_a_bound_on_memory_changes_no_latent(
    vae: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, memory_gib in (("whole", None), ("strips", 2e-4)):
        encode(options(vae, photos, tmp_path / name, resolution=64, memory_gib=memory_gib))
    whole, strips = LatentDataset(tmp_path / "whole"), LatentDataset(tmp_path / "strips")
    assert "exact tiling: encoder, 64 x 64: " in capsys.readouterr().err
    for row in range(len(whole)):
        assert close(strips.moments(row)["mean"], whole.moments(row)["mean"])
