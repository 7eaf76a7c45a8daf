"""The Python surface: every kind of picture gives the latents of the file, and the documented examples run."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_vae
import ldm_vae.api
from ldm_vae import LatentDataset, decode_latents, encode_images, interpolate_pictures, load_autoencoder
from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.images.transforms import to_image
from ldm_vae.models.families import family_of
from tests.pictures import picture
from tests.tiny import tiny_autoencoder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture(0, size=(73, 49)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("resolution", [None, 32])
def test_every_kind_of_picture_gives_the_latents_of_the_file(photo: Path, resolution: int | None) -> None:
    autoencoder = tiny_autoencoder(scaling_factor=0.5, shift_factor=0.1)
    collection = open_collection(str(photo.parent))
    image = EvaluationImages(collection, channels=3, resolution=resolution, multiple_of=2)[0].image
    assert image is not None
    expected = (family_of(autoencoder).encode_moments(image[None])[0] - 0.1) * 0.5
    picture = Image.open(photo)
    pixels = np.asarray(picture)
    kinds = [picture, picture.convert("RGBA"), [picture], pixels, pixels[None],
             torch.from_numpy(pixels.copy()).permute(2, 0, 1)]  # fmt: skip
    if resolution is None:
        kinds += [torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1), pixels / 127.5 - 1]
    for kind in kinds:
        latents = encode_images(autoencoder, kind, resolution=resolution)
        torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    several = encode_images(autoencoder, [picture] * 5, resolution=resolution, batch_size=2)
    torch.testing.assert_close(several, expected.expand(5, -1, -1, -1), rtol=1e-5, atol=1e-5)


def test_grey_and_transparent_pictures(photo: Path) -> None:
    grey = Image.open(photo).convert("L")
    expected = encode_images(tiny_autoencoder(), grey.convert("RGB"))
    for kind in (grey, np.asarray(grey), np.asarray(grey)[..., None]):
        torch.testing.assert_close(encode_images(tiny_autoencoder(), kind), expected)
    for channels, mode in ((1, "L"), (4, "RGBA")):
        autoencoder = tiny_autoencoder(in_channels=channels, out_channels=channels)
        assert decode_latents(autoencoder, encode_images(autoencoder, Image.open(photo)))[0].mode == mode


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.3},
        {"scaling_factor": 0.3, "shift_factor": 0.7},
        {"scaling_factor": 2.0, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]},
    ],
)
def test_normalization_is_the_pipelines_and_comes_back(config: dict[str, object], photo: Path) -> None:
    autoencoder = tiny_autoencoder(**config)
    picture = Image.open(photo)
    raw = encode_images(autoencoder, picture, normalize="none")
    latents = encode_images(autoencoder, picture)
    if "latents_mean" in config:
        mean, std = (torch.tensor(config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
        expected = (raw - mean) * 2.0 / std
    else:
        expected = (raw - config.get("shift_factor", 0.0)) * 0.3
    torch.testing.assert_close(latents, expected)
    with torch.no_grad():
        plain = to_image(autoencoder.decode(raw).sample[0])
    for decoded in (decode_latents(autoencoder, latents)[0], decode_latents(autoencoder, raw[0], normalize="none")[0]):
        assert decoded.size == (72, 48)
        assert np.abs(np.asarray(decoded, dtype=int) - np.asarray(plain)).max() <= 1


def test_samples_are_the_posterior_s_and_repeat(photo: Path) -> None:
    autoencoder = tiny_autoencoder(scaling_factor=1.0)
    picture = Image.open(photo)
    first, again, other = (
        encode_images(autoencoder, picture, sample=True, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.no_grad():
        images = torch.from_numpy(np.asarray(picture)[:48, :72] / 127.5 - 1).permute(2, 0, 1)[None].float()
        posterior = autoencoder.encode(images).latent_dist
    z = (first - posterior.mean) / posterior.std
    assert z.std().item() == pytest.approx(1, abs=0.05)


def test_half_precision_models(photo: Path) -> None:
    picture = Image.open(photo)
    latents = encode_images(tiny_autoencoder().half(), picture)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, encode_images(tiny_autoencoder(), picture), rtol=0, atol=0.01)
    assert decode_latents(tiny_autoencoder().half(), latents)[0].size == (72, 48)


@pytest.mark.parametrize(
    ("images", "options", "match"),
    [
        (np.zeros((8, 8, 3)) + 200.0, {}, r"\[-1, 1\]"),
        (np.zeros((8, 8, 3), dtype=np.int64), {}, "int64"),
        (torch.zeros(5, 8, 8), {}, "3 channels"),
        (torch.full((3, 8, 8), float("nan")), {}, r"\[-1, 1\]"),
        (torch.zeros(3, 8, 8), {"resolution": 4}, "resolution"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 10, 8)], {}, "2 sizes"),
        (torch.zeros(3, 1, 8), {}, "factor 2"),
        ([], {}, "no images"),
    ],
)
def test_what_is_no_picture_is_refused(images: object, options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        encode_images(tiny_autoencoder(), images, **options)  # type: ignore[arg-type]


def test_latents_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, 4, h, w\]"):
        decode_latents(tiny_autoencoder(), torch.zeros(1, 16, 4, 4))


@pytest.mark.parametrize(
    "documented", [load_autoencoder, encode_images, decode_latents, interpolate_pictures, LatentDataset]
)
def test_documented_examples_run(documented: object, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_autoencoder().save_pretrained(photo.parent / "export")
    Image.open(photo).save(photo.parent / "another.png")
    options = {"vae": photo.parent / "export", "data": photo.parent, "output": photo.parent / "latents"}
    encode(EncodeOptions(**{name: str(path) for name, path in options.items()}, resolution=32, num_workers=0))
    monkeypatch.chdir(photo.parent)
    example = doctest.DocTestFinder(recurse=False).find(documented, name="example", globs={})  # type: ignore[arg-type]
    assert len(example[0].examples) >= 3
    assert doctest.DocTestRunner().run(example[0]).failed == 0


def test_import_is_light_and_the_surface_is_typed() -> None:
    code = "import sys, ldm_vae; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules); ldm_vae.LatentDataset"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ldm_vae.load_autoencoder is load_autoencoder
    assert set(ldm_vae.__all__) == set(dir(ldm_vae))
    with pytest.raises(AttributeError, match="encode_image"):
        ldm_vae.encode_image  # noqa: B018
    assert (Path(ldm_vae.__file__).parent / "py.typed").is_file()
