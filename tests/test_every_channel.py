"""Images of any number of channels, from files of numbers to latents and back, by the commands a user gives."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from ldm_vae import LatentDataset, decode_latents, encode_images, load_autoencoder
from ldm_vae.config.rules import FieldError
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.models.families import FAMILIES
from tests.commands import command
from tests.images.test_numbers import RULES, npy, tiff
from tests.pictures import picture, save_pictures
from tests.tiny import LOSS, MODEL, TRAIN, random_images, tiny_config, tiny_family

SIDE = 16
RUN = TRAIN | {"max_train_steps": 3, "checkpointing_steps": 3, "validation_steps": 3, "log_steps": 1}
RANGE = [0.0, 10000.0]
KINDS: dict[str, dict[str, Any]] = {
    "six bands": {"channels": 6, "loss": {"perceptual": "efficientnet_lite0", "perceptual_channels": [3, 2, 1]}},
    "two bands": {"channels": 2, "loss": {}},
}


def write_numbers(folder: Path, *, channels: int, count: int = 5) -> Path:
    """Write smooth images whose channels differ: half of them arrays, half TIFF files."""
    folder.mkdir()
    for i in range(count):
        bands = [np.asarray(picture(100 * i + band, size=(20, 18), mode="L")) for band in range(channels)]
        values = np.stack(bands, axis=-1).astype(np.uint16) * 39
        if i % 2:
            (folder / f"{i}.tif").write_bytes(tiff(values, planarconfig="contig"))
        else:
            np.save(folder / f"{i}.npy", values)
    return folder


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What the commands made of images of so many channels: a run, and its export."""

    folder: Path
    channels: int
    is_seen: bool
    """Whether a network for photographs sees some of the channels."""
    originals: Tensor
    """The images, [B, C, H, W] in [-1, 1]."""
    family: AutoencoderKL
    made: Tensor
    """Reconstructions of the posteriors' means, [B, C, H, W] in [-1, 1]."""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def vae(self) -> Path:
        return self.folder / "vae"


@pytest.fixture(scope="module", params=KINDS)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The run on images of a kind, its export, and what that makes of the images."""
    folder = tmp_path_factory.mktemp("walk")
    channels, loss = KINDS[request.param]["channels"], KINDS[request.param]["loss"]
    data = str(write_numbers(folder / "data", channels=channels))
    fields = {"train": data, "validation": data, "resolution": SIDE, "num_workers": 0, "value_range": RANGE}
    recipe = {"model": MODEL | {"in_channels": channels}, "data": fields, "loss": LOSS | loss, "train": RUN}
    (folder / "recipe.json").write_text(json.dumps({"report_to": "none", **recipe}))
    command("train", config=folder / "recipe.json", output_dir=folder / "run")
    command("export", run=folder / "run", output=folder / "vae", num_workers=0)
    collection = open_collection(data, rules=RULES)
    originals = torch.stack([centre(collection, i, channels) for i in range(5)])
    family = load_autoencoder(folder / "vae")
    with torch.no_grad():
        made = family(originals).sample.clamp(-1, 1)
    return Walk(folder=folder, channels=channels, is_seen=bool(loss), originals=originals, family=family, made=made)


def test_samples_are_drawn(walk: Walk) -> None:
    assert Image.open(walk.folder / "run/samples/step-000003.png").width > SIDE


def test_the_card_says_what_numbers_are_and_its_snippet_runs(
    walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (walk.vae / "README.md").read_text()
    assert f"{walk.channels}-channel images" in card
    assert "Images are arrays of numbers, of which the range (0 to 10000) becomes [-1, 1]" in card
    assert card.count("\n| ") > 2 * walk.channels
    shutil.copytree(walk.vae, tmp_path / "vae")
    np.save(tmp_path / "image.npy", np.load(walk.data / "0.npy")[:SIDE, :SIDE])
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})
    assert np.load("reconstruction.npy").shape == (SIDE, SIDE, walk.channels)


def test_figures_of_each_channel_are_those_of_plain_formulas(walk: Walk, tmp_path: Path) -> None:
    options: dict[str, Any] = {"resolution": SIDE, "per_channel": True, "value_range": RANGE, "num_workers": 0}
    if walk.is_seen:
        options["perceptual_channels"] = [3, 2, 1]
    command("evaluate", vae=walk.vae, data=walk.data, output=tmp_path / "evaluation", **options)
    figures = json.loads((tmp_path / "evaluation/metrics.json").read_text())["evaluations"][0]
    errors = ((walk.originals - walk.made) / 2).double().square()
    values = (walk.originals.double() + 1) / 2 * RANGE[1]
    psnr = -10 * errors.mean(dim=(2, 3)).log10()
    std = values.std(dim=(0, 2, 3), correction=0)
    of_channels = figures["image_channels"]
    assert of_channels["psnr"] == pytest.approx(psnr.mean(0).tolist(), abs=1e-3)
    assert of_channels["mean"] == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), rel=1e-5)
    assert of_channels["std"] == pytest.approx(std.tolist(), rel=1e-3)
    of_whole = (-10 * errors.mean(dim=(1, 2, 3)).log10()).mean().item()
    assert figures["metrics"]["psnr"]["value"] == pytest.approx(of_whole, abs=1e-3)
    assert ("efficientnet_lite0" in figures["metrics"]) == walk.is_seen


@torch.no_grad()
def test_latents_and_back_in_the_units_of_the_data(
    walk: Walk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mean = walk.family.encode(walk.originals).latent_dist.mode()
    latents = tmp_path / "latents"
    exact = {"dtype": "float32", "mixed_precision": "no", "num_workers": 0}
    command("encode", vae=walk.vae, data=walk.data, output=latents, resolution=SIDE, value_range=RANGE, **exact)
    dataset = LatentDataset(latents, normalize="none")
    torch.testing.assert_close(torch.stack([dataset[i].latents for i in range(5)]), mean, rtol=1e-4, atol=1e-5)
    command("latents verify", latents, deep=True, vae=walk.vae, data=walk.data)  # in the range that they were read in
    command("decode", vae=walk.vae, latents=latents, output=tmp_path / "decoded")
    for i in range(5):
        array = np.load(tmp_path / "decoded" / f"{i}.npy")
        assert (array.shape, array.dtype) == ((SIDE, SIDE, walk.channels), np.float32)
        expected = (walk.made[i].permute(1, 2, 0).numpy() + 1) / 2 * RANGE[1]
        np.testing.assert_allclose(array, expected, atol=0.5)
    with pytest.raises(SystemExit):
        command("decode", vae=walk.vae, latents=latents, output=tmp_path / "no", format="png")
    assert f"--format is png, but --vae {walk.vae} makes {walk.channels} channels" in capsys.readouterr().err


@torch.no_grad()
def test_arrays_are_encoded_and_decoded_in_python(walk: Walk) -> None:
    mean = walk.family.encode(walk.originals).latent_dist.mode()
    latents = encode_images(walk.family, walk.originals.permute(0, 2, 3, 1).numpy(), normalize="none")
    torch.testing.assert_close(latents, mean, rtol=1e-4, atol=1e-5)
    decoded = decode_latents(walk.family, latents, normalize="none")[0]
    assert isinstance(decoded, np.ndarray)
    np.testing.assert_allclose(decoded, walk.made[0].permute(1, 2, 0).numpy(), atol=1e-4)


def centre(collection: Any, index: int, channels: int) -> torch.Tensor:
    """The middle square of an image at the run's resolution."""
    image = EvaluationImages(collection, channels=channels, resolution=SIDE)[index].image
    assert image is not None
    return image


@pytest.mark.parametrize("family", sorted(family.name for family in FAMILIES.values()))
@pytest.mark.parametrize("channels", [2, 64])
def test_every_family_takes_any_number_of_channels(family: str, channels: int) -> None:
    fields: dict[str, Any] = {"family": family, "in_channels": channels, "norm_num_groups": 4}
    if family in ("tiny", "dc"):
        fields |= {"block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4}
    model = tiny_family(**fields)
    assert model.in_channels == model.out_channels == channels
    with torch.no_grad():
        made = model.reconstruct(random_images(channels, side=SIDE))
    assert made.images.shape == (2, channels, SIDE, SIDE)


def test_a_model_of_bands_is_refused_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_family(in_channels=5).model.save_pretrained(tmp_path / "vae")
    photos = save_pictures(tmp_path / "photos", count=2)
    for name in ("encode", "evaluate"):
        with pytest.raises(SystemExit):
            command(name, vae=tmp_path / "vae", data=photos, output=tmp_path / "out")
        error = capsys.readouterr().err.strip()
        assert "value_range is missing: pictures have 1, 3 or 4 channels, and the model takes 5" in error
        assert "\n" not in error
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays/x.npy").write_bytes(npy(np.zeros((8, 8, 5))))
    options = {"output": tmp_path / "out", "value_range": [0, 1], "perceptual": "efficientnet_lite0"}
    with pytest.raises(SystemExit):
        command("evaluate", vae=tmp_path / "vae", data=tmp_path / "arrays", **options)
    assert "perceptual_channels is empty; of the 5 channels name one or three" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "data", "loss", "message"),
    [
        ({"in_channels": 5}, {}, {}, r"data\.value_range is missing"),
        ({"in_channels": 65}, {}, {}, r"model\.in_channels is 65; it must lie in \[1, 64\]"),
        ({"in_channels": 5}, {"value_range": [0.0, 1.0] * 3}, {}, r"data\.value_range has 6 numbers; it must have 2"),
        (
            {"in_channels": 4},
            {"value_range": [0.0, 1.0]},
            {"perceptual": "lpips_vgg"},
            r"loss\.perceptual_channels is empty; of model\.in_channels 4 name one or three",
        ),
        (
            {},
            {},
            {"perceptual": "lpips_vgg", "perceptual_channels": [0, 3, 1]},
            r"loss\.perceptual_channels is \[0, 3",
        ),
    ],
)
def test_settings_that_would_be_guesses_are_refused(
    model: dict[str, Any], data: dict[str, Any], loss: dict[str, Any], message: str
) -> None:
    with pytest.raises(FieldError, match=message) as raised:
        tiny_config(model=model, data=data, loss=loss)
    assert "\n" not in str(raised.value)


def test_variants_are_numbers_in_the_range(walk: Walk, tmp_path: Path) -> None:
    options: dict[str, Any] = {"vae": walk.vae, "resolution": SIDE, "value_range": RANGE}
    command("explore augment", data=walk.data, output=tmp_path / "more", move=0.01, num_workers=0, **options)
    variants = [np.load(tmp_path / "more" / f"{i}-0.npy") for i in range(5)]
    assert np.stack(variants).shape == (5, SIDE, SIDE, walk.channels)
    assert np.stack(variants).min() >= 0
    assert np.stack(variants).max() <= RANGE[1]
    first, second = walk.data / "0.npy", walk.data / "1.tif"
    command("explore interpolate", first, second, output=tmp_path / "way", steps=3, path="linear", **options)
    assert Image.open(tmp_path / "way/linear.png").size == (3 * SIDE, SIDE)
