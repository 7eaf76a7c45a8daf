"""`latents export --layout kohya`: what sd-scripts' own cache would hold, under the names that it looks for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm_vae.config.commands.latents import LatentsExportOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.export import LatentsExportSummary, export_latents
from ldm_vae.latents.layouts.kohya import kohya_crop
from ldm_vae.latents.layouts.kohya_buckets import kohya_bucket, kohya_bucket_sizes
from tests.encodings import options, save_vae
from tests.pictures import picture

F8 = (4, 4, 8, 8)
SIZES = [(80, 60), (60, 90), (64, 64), (120, 60), (90, 60)]
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
"""EXIF that says that the picture lies on its side."""


def save_images(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> str:
    for i, size in enumerate(sizes):
        path = folder / ("cat" if i < 3 else "dog") / f"{i} é.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, size=size).save(path)
    return str(folder)


def export(latents: Path, images: Path, model: str, **changes: Any) -> LatentsExportSummary:
    return export_latents(
        LatentsExportOptions(latents=str(latents), output=str(images), layout="kohya", kohya_model=model, **changes)
    )


@pytest.mark.parametrize(
    ("model", "channels", "shift", "scale"),
    [("sd", 4, 0, 1), ("sdxl", 4, 0, 1), ("sd3", 16, 0, 1), ("flux", 16, 0.1159, 0.3611)],
)
def test_what_is_cached(tmp_path: Path, model: str, channels: int, shift: float, scale: float) -> None:
    """FLUX's latents alone are cached scaled, by its own constants, whatever the autoencoder's own scaling is."""
    vae = save_vae(tmp_path / "vae", widths=F8, latent_channels=channels, scaling_factor=0.5, shift_factor=0.25)
    images = tmp_path / "images"
    encode(options(vae, save_images(images), tmp_path / "latents", resolution=64, flip=True))
    summary = export(tmp_path / "latents", images, model)
    assert (summary.num_rows, summary.notes) == (5, [])
    dataset = LatentDataset(tmp_path / "latents", normalize="none")
    for line in dataset.rows():
        number = int(line["source"].split("/")[1][0])
        width, height = SIZES[number]
        found = np.load(images / f"{line['source'][:-4]}_{width:04d}x{height:04d}_{model}.npz")
        suffix = "_8x8" if channels == 16 else ""
        for name, flipped in (("latents", False), ("latents_flipped", True)):
            expected = (dataset.latents(line["row"], flipped=flipped) - shift) * scale
            assert found[name + suffix].dtype == np.float32
            torch.testing.assert_close(torch.from_numpy(found[name + suffix]), expected)
        assert found["original_size" + suffix].tolist() == [width, height]
        assert found["crop_ltrb" + suffix].tolist() == list(kohya_crop((64, 64), original=(width, height)))
    with pytest.raises(ValueError, match="is there already; overwrite replaces it"):
        export(tmp_path / "latents", images, model)
    export(tmp_path / "latents", images, model, overwrite=True)


def test_files_hold_several_sizes(tmp_path: Path) -> None:
    vae = save_vae(tmp_path / "vae", widths=F8, latent_channels=16)
    images = tmp_path / "images"
    for resolution in (32, 64):
        encode(options(vae, save_images(images), tmp_path / str(resolution), resolution=resolution))
        export(tmp_path / str(resolution), images, "flux", overwrite=resolution == 64)
    found = np.load(images / "cat" / "0 é_0080x0060_flux.npz")
    assert found["latents_4x4"].shape == (16, 4, 4)
    assert found["latents_8x8"].shape == (16, 8, 8)


def test_buckets_are_chosen_as_sd_scripts_chooses_them() -> None:
    """Against what `BucketManager` of sd-scripts gave."""
    sizes = kohya_bucket_sizes(512, step=64, smallest=256, largest=1024)
    upright = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    assert sizes == sorted([*upright, (512, 512), *((h, w) for w, h in upright)])
    for size, bucket, crop in (
        ((100, 100), (512, 512), (0, 0, 512, 512)),
        ((640, 480), (576, 448), (0, 8, 576, 440)),
        ((3000, 4000), (448, 576), (8, 0, 440, 576)),
        ((1000, 300), (832, 256), (0, 3, 832, 252.6)),
        ((512, 704), (448, 576), (14, 0, 432.90909090909093, 576)),
        ((575, 511), (512, 512), (0, 28, 512, 483.01217391304345)),
        ((1200, 1000), (576, 448), (19, 0, 556.6, 448)),
        ((960, 256), (960, 256), (0, 0, 960, 256)),
        ((147, 100), (576, 448), (0, 28, 576, 419.83673469387756)),  # by their quotient it would be (640, 384)
    ):
        assert kohya_bucket(size, sizes=sizes) == bucket
        assert kohya_crop(bucket, original=size) == pytest.approx(crop)
    assert kohya_bucket_sizes(640, step=64, smallest=300, largest=1000)[0] == (256, 1024)  # rounded to 256 and 1024


def test_buckets_and_turned_pictures(tmp_path: Path) -> None:
    vae = save_vae(tmp_path / "vae", widths=F8)
    images = tmp_path / "images"
    save_images(images)
    for name, size in (("turned.jpg", (90, 60)), ("turned square.jpg", (64, 64))):
        picture(7, size=size).save(images / name, exif=TURNED)
    changes: dict[str, Any] = {"buckets": True, "bucket_step": 16, "resolution": 64}
    encode(options(vae, str(images), tmp_path / "area", **changes))
    with pytest.raises(ValueError, match=r"another choice than sd-scripts'.*--bucket_set sd_scripts"):
        export(tmp_path / "area", images, "sdxl")
    changes |= {"bucket_set": "sd_scripts", "min_bucket_reso": 32, "max_bucket_reso": 128}
    encode(options(vae, str(images), tmp_path / "latents", **changes))
    summary = export(tmp_path / "latents", images, "sdxl")
    assert summary.num_rows == len(SIZES) + 1
    assert summary.notes[0].startswith("1 left out, the first turned.jpg: sd-scripts doesn't turn pictures upright")
    sizes = kohya_bucket_sizes(64, step=16, smallest=32, largest=128)
    found = {path.name: np.load(path) for path in images.rglob("*.npz")}
    assert set(found) == {
        *(f"{i} é_{w:04d}x{h:04d}_sdxl.npz" for i, (w, h) in enumerate(SIZES)), "turned square_0064x0064_sdxl.npz"
    }  # fmt: skip
    for i, size in enumerate(SIZES):
        width, height = kohya_bucket(size, sizes=sizes)
        assert found[f"{i} é_{size[0]:04d}x{size[1]:04d}_sdxl.npz"]["latents"].shape == (4, height // 8, width // 8)

    for path in images.rglob("*.npz"):
        path.unlink()
    encode(options(vae, str(images), tmp_path / "squares", resolution=64))
    assert export(tmp_path / "squares", images, "sd").num_rows == len(SIZES) + 2
    assert (images / "turned_0090x0060_sd.npz").exists()  # as it is stored, not as it is seen
    assert np.load(images / "turned_0090x0060_sd.npz")["original_size"].tolist() == [90, 60]


def test_what_sd_scripts_could_not_use_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    save_images(images)
    for name, widths, channels in (("f4", F8[1:], 4), ("f8", F8, 4), ("wide", F8, 16)):
        vae = save_vae(tmp_path / f"vae {name}", widths=widths, latent_channels=channels)
        encode(options(vae, str(images), tmp_path / name, resolution=64))
    for folder, model, message in (
        ("f4", "sd", "latents of a factor 4; sd-scripts reads those of sd with 8"),
        ("f8", "flux", "latents of 4 channels; flux has 16"),
        ("f8", "sd3", "latents of 4 channels; sd3 has 16"),
        ("wide", "sdxl", "latents of 16 channels; sdxl has 4"),
    ):
        with pytest.raises(ValueError, match=message):
            export(tmp_path / folder, images, model)
    (images / "cat" / "0 é.npz").write_bytes(b"older")
    with pytest.raises(ValueError, match=r"0 é\.npz is there, which sd-scripts would take instead; move it away"):
        export(tmp_path / "f8", images, "sdxl")
    assert [path.name for path in images.rglob("*.npz")] == ["0 é.npz"]

    empty = tmp_path / "empty"
    summary = export(tmp_path / "f8", empty, "sdxl")
    assert summary.notes[0].startswith("5 have no image in ")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"samples\.jsonl: 'cat/0 é\.png' leads out of its folder through a link"):
        export(tmp_path / "f8", tmp_path / "linked", "sdxl")
    assert list(elsewhere.iterdir()) == []
    os.rename(images / "dog" / "4 é.png", images / "dog" / ("a" * 240 + ".png"))
    encode(options(str(tmp_path / "vae f8"), str(images), tmp_path / "long", resolution=64))
    with pytest.raises(ValueError, match="the name of its latents would have 259 bytes, and a name may have 255"):
        export(tmp_path / "long", tmp_path / "other", "sdxl")
