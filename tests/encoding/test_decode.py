"""`decode` on a tiny autoencoder: pictures against diffusers itself, their names, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae.config.commands.decode import DecodeOptions
from ldm_vae.encoding.decode import decode, picture_names
from ldm_vae.encoding.encode import encode
from ldm_vae.latents.dataset import LatentDataset
from tests.encodings import options, save_vae
from tests.pictures import picture, save_pictures


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def latents(vae: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("latents")
    encode(options(vae, save_pictures(folder / "photos", count=6), folder / "latents"))
    return str(folder / "latents")


def test_pictures_are_what_diffusers_decodes(vae: str, latents: str, tmp_path: Path) -> None:
    summary = decode(DecodeOptions(vae=vae, latents=latents, output=str(tmp_path), batch_size=4))
    assert summary.num_images == 6
    autoencoder = AutoencoderKL.from_pretrained(vae).eval()
    dataset = LatentDataset(latents, normalize="none")
    for row in range(6):
        with torch.no_grad():
            image = autoencoder.decode(dataset.moments(row)["mean"][None]).sample[0]
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
        written = np.asarray(Image.open(tmp_path / f"{row:04d}.png")).astype(float)
        assert np.abs(written - pixels).max() < 0.51
    lines = [json.loads(line) for line in (tmp_path / "pictures.jsonl").open()]
    assert lines[3] == {"picture": "0003.png", "row": 3, "sample": 3, "source": "0003.png"}


def test_buckets_grey_and_subfolders(tmp_path: Path) -> None:
    vae = save_vae(tmp_path / "vae", in_channels=1, out_channels=1)
    for name, size in (("x/a.png", (40, 20)), ("x/b.png", (20, 40)), ("y/a.png", (20, 20))):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(1, size=size, mode="L").save(tmp_path / "data" / name)
    encode(options(vae, str(tmp_path / "data"), tmp_path / "latents", buckets=True, bucket_step=4))
    decode(DecodeOptions(vae=vae, latents=str(tmp_path / "latents"), output=str(tmp_path / "out")))
    found = {str(path.relative_to(tmp_path / "out")): Image.open(path) for path in (tmp_path / "out").rglob("*.png")}
    assert {name: image.size for name, image in found.items()} == {
        "x/a.png": (20, 12), "x/b.png": (12, 20), "y/a.png": (16, 16)
    }  # fmt: skip
    assert {image.mode for image in found.values()} == {"L"}


def test_names() -> None:
    sources = ["a.jpg", "a.png", "b/C.jpg", "b/c.webp", "../../etc/é.jpg", "row 7", "", "..", "d.tar.gz", "D:\\e.png"]
    names = picture_names([{"source": source, "sample": i} for i, source in enumerate(sources)])
    assert names == [
        "sample-00000000.png", "sample-00000001.png", "sample-00000002.png", "sample-00000003.png", "etc/é.png",
        "row 7.png", "sample-00000006.png", "sample-00000007.png", "d.tar.png", "D_/e.png",
    ]  # fmt: skip
    taken = picture_names(
        [{"source": s, "sample": i} for i, s in enumerate(["a.jpg", "a.png", "sample-00000000.jpg"])]
    )
    assert len(set(taken)) == 3


def test_what_is_refused_and_what_is_replaced(vae: str, latents: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = {"vae": vae, "latents": latents, "output": str(out)}
    decode(DecodeOptions(**arguments))
    (out / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="holds other things; take an empty folder, or --overwrite"):
        decode(DecodeOptions(**arguments))
    decode(DecodeOptions(**arguments, num_images=2, overwrite=True))
    assert {path.name for path in out.iterdir()} == {"0000.png", "0001.png", "pictures.jsonl", "mine.txt"}

    other = save_vae(tmp_path / "vae", seed=1)
    with pytest.raises(ValueError, match="is not the autoencoder that"):
        decode(DecodeOptions(**{**arguments, "vae": other, "output": str(tmp_path / "b")}))
    assert not (tmp_path / "b").exists()
    decode(DecodeOptions(**{**arguments, "vae": other, "output": str(tmp_path / "b")}, other_vae=True))
    wide = save_vae(tmp_path / "wide", latent_channels=8)
    with pytest.raises(ValueError, match="decodes 8 latent channels, but"):
        decode(DecodeOptions(**{**arguments, "vae": wide, "output": str(tmp_path / "c")}, other_vae=True))

    trained = AutoencoderKL.from_pretrained(vae)  # by its decoder alone: its latents are still these
    torch.nn.init.zeros_(trained.decoder.conv_out.weight)
    trained.save_pretrained(tmp_path / "trained")
    decode(DecodeOptions(**{**arguments, "vae": str(tmp_path / "trained"), "output": str(tmp_path / "d")}))
    with pytest.raises(ValueError, match="--num_images is 0"):
        DecodeOptions(**arguments, num_images=0)
