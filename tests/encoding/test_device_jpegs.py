"""`encode` with JPEG files decoded by the device: here torchvision on the CPU, on a GPU nvJPEG, beside Pillow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision.io

from ldm_vae.config.commands.latents import LatentsVerifyOptions
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import FieldError
from ldm_vae.encoding import encode as encode_module
from ldm_vae.encoding import verify as verify_module
from ldm_vae.encoding.device_jpegs import DeviceJpegs
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.preprocessing import EncodingImage, ImageBatch, collate
from ldm_vae.encoding.verify import verify
from ldm_vae.images.jpegs import jpeg_crop
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.shards import Row
from tests.encodings import options, save_vae
from tests.pictures import encoded, picture, smooth_picture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of JPEG files of many kinds among other pictures and damaged files."""
    folder = tmp_path_factory.mktemp("photos")
    broken = bytearray(encoded(picture(4), "JPEG"))
    at = broken.index(b"\xff\xc4")
    broken[at + 5 : at + 21] = b"\xff" * 16  # no code of Huffman's has so many words
    for name, content in {
        "0.jpg": encoded(picture(0), "JPEG"),
        "1.png": encoded(picture(1), "PNG"),
        "2.jpg": encoded(picture(2), "JPEG", progressive=True, subsampling=0),
        "3.jpg": encoded(picture(3, mode="L"), "JPEG"),
        "4.jpg": bytes(broken),
        "5.jpg": encoded(picture(5), "JPEG")[:-60],
        "6.jpg": encoded(picture(6).convert("CMYK"), "JPEG"),
        "7.jpg": encoded(picture(7, size=(31, 77)), "JPEG"),
        "8.jpg": encoded(picture(8, size=(90, 95)), "JPEG"),
        "9.jpg": encoded(picture(9), "JPEG"),
    }.items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU's libjpeg-turbo stand where nvJPEG would."""
    if torch.cuda.is_available():
        pytest.skip("nvJPEG decodes here")
    for module in (encode_module, verify_module):
        monkeypatch.setattr(module, "require_cuda", lambda device_type, asked: None)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("workers", [0, 2])
def test_latents_and_reasons_are_those_of_pillow(vae: str, photos: str, tmp_path: Path, workers: int) -> None:
    how = {"mode": "sample", "flip": True, "num_workers": workers}
    encode(options(vae, photos, tmp_path / "pillow", **how))
    summary = encode(options(vae, photos, tmp_path / "device", jpeg_decoder="nvjpeg", **how))
    assert (summary.num_rows, summary.num_skipped, summary.num_by_device) == (8, 2, 5)
    assert "the device decoded the files of 5, Pillow the others" in str(summary)
    pillow, device = (LatentDataset(tmp_path / name, normalize="none") for name in ("pillow", "device"))
    for row in range(8):
        assert device.row(row) == pillow.row(row)
        for name, values in pillow.moments(row).items():
            assert torch.equal(device.moments(row)[name], values)
    skipped = [(tmp_path / name / "skipped.jsonl").read_text().splitlines() for name in ("pillow", "device")]
    assert skipped[0] == skipped[1]
    assert [json.loads(line)["source"] for line in skipped[0]] == ["4.jpg", "5.jpg"]


@pytest.mark.usefixtures("on_cpu")
def test_an_output_is_of_one_decoder(vae: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(options(vae, photos, tmp_path, jpeg_decoder="nvjpeg"))
    assert json.loads((tmp_path / "index.json").read_text())["preprocessing"]["jpeg_decoder"] == "nvjpeg"
    with pytest.raises(ValueError, match="jpeg_decoder"):
        encode(options(vae, photos, tmp_path))
    deep = LatentsVerifyOptions(latents=str(tmp_path), vae=vae, data=photos, deep=True)
    assert verify(deep).deep_images == 8
    monkeypatch.undo()
    with pytest.raises(FieldError, match=r"deep decodes as .* by nvJPEG, which takes a CUDA device, and .* the CPU"):
        verify(deep)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha(photos: str, tmp_path: Path, channels: int) -> None:
    vae = save_vae(tmp_path / "vae", in_channels=channels, out_channels=channels)
    encode(options(vae, photos, tmp_path / "pillow"))
    summary = encode(options(vae, photos, tmp_path / "device", jpeg_decoder="nvjpeg"))
    assert summary.num_by_device == (5 if channels == 1 else 0)
    pillow, device = (LatentDataset(tmp_path / name, normalize="none") for name in ("pillow", "device"))
    for row in range(8):
        assert torch.equal(device[row].latents, pillow[row].latents)


def test_without_cuda_asking_for_it_is_one_line(vae: str, photos: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    with pytest.raises(FieldError, match=r"jpeg_decoder is nvjpeg, which takes a CUDA device, and .* the CPU"):
        encode(options(vae, photos, tmp_path / "out", jpeg_decoder="nvjpeg"))
    assert not (tmp_path / "out").exists()
    for others in ({"value_range": [0.0, 255.0]}, {"mel_frames": 1024}):
        with pytest.raises(FieldError, match="jpeg_decoder"):
            options(vae, photos, tmp_path / "out", jpeg_decoder="nvjpeg", **others)


def batch_of(*contents: bytes) -> ImageBatch:
    """Return a batch of files that aren't decoded yet, whole pictures to become 16 by 16."""
    crops = [
        jpeg_crop(
            content, channels=3, resolution=(16, 16), box_of=lambda size: (0, 0, *size), name="", rules=ReadingRules()
        )
        for content in contents
    ]
    rows = [Row(sample=number, image=number, source=f"{number}.jpg", size=[1, 1]) for number in range(len(crops))]
    batch = collate([EncodingImage(row=row, pixels=crop) for row, crop in zip(rows, crops, strict=True)])
    batch.size = (16, 16)
    return batch


def test_what_the_device_refuses_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = DeviceJpegs(CPU, channels=3, rules=ReadingRules())
    contents = [encoded(picture(number), "JPEG") for number in range(4)]
    expected = decoder.decoded(batch_of(*contents))
    assert expected.num_by_device == 4
    assert expected.pixels is not None
    plain = torchvision.io.decode_jpeg

    def decode(files: list[torch.Tensor], **how: object) -> list[torch.Tensor]:
        if any(file.numpy().tobytes() == contents[1] for file in files):
            raise RuntimeError("nvjpegDecodeBatched failed: 6")
        return [image[:, 1:] if file.numpy().tobytes() == contents[2] else image for file, image in
                zip(files, plain(files, **how), strict=True)]  # fmt: skip

    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode)
    found = decoder.decoded(batch_of(*contents))
    assert found.num_by_device == 2
    assert found.pixels is not None
    assert torch.equal(found.pixels, expected.pixels)

    def short_of_memory(files: list[torch.Tensor], **how: object) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torchvision.io, "decode_jpeg", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.decoded(batch_of(*contents))


def test_a_decoder_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torchvision.io.decode_jpeg

    def inverted(files: list[torch.Tensor], **how: object) -> list[torch.Tensor]:
        return [image.flip(0) for image in plain(files, **how)]

    def failing(files: list[torch.Tensor], **how: object) -> list[torch.Tensor]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nException raised from")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", inverted)
    with pytest.raises(FieldError, match=r"another picture than Pillow here, by \d+ levels; leave it out"):
        DeviceJpegs(CPU, channels=3, rules=ReadingRules())
    monkeypatch.setattr(torchvision.io, "decode_jpeg", failing)
    with pytest.raises(FieldError, match=r"decodes no JPEG files on cpu \(.*nvJPEG support\); leave it out"):
        DeviceJpegs(CPU, channels=3, rules=ReadingRules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_gives_the_pictures_of_the_cpu() -> None:
    contents = [
        encoded(picture(0), "JPEG", subsampling=0, quality=95),
        encoded(picture(1, mode="L"), "JPEG"),
        encoded(smooth_picture(40, 36), "JPEG", subsampling=0, progressive=True),
        encoded(smooth_picture(40, 36), "JPEG", subsampling=2),
    ]
    ours = DeviceJpegs(torch.device("cuda", 0), channels=3, rules=ReadingRules())
    for number in range(3):  # each time in memory that the last one used
        found = ours.decoded(batch_of(*contents))
        assert found.num_by_device == 4, number
        expected = DeviceJpegs(CPU, channels=3, rules=ReadingRules()).decoded(batch_of(*contents))
        assert found.pixels is not None
        assert expected.pixels is not None
        apart = (found.pixels.cpu().short() - expected.pixels.short()).abs()
        assert int(apart[:3].max()) <= 3
        assert float(apart[3].float().mean()) <= 4  # nvJPEG repeats a colour where others interpolate
