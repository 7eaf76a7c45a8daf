"""Every family from the first update to pictures decoded from stored latents, by the commands a user gives."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_vae import LatentDataset, decode_latents, encode_images, load_autoencoder
from ldm_vae.api import Normalize
from ldm_vae.images.transforms import to_tensor
from ldm_vae.models.families import FAMILIES
from ldm_vae.models.families.family import Family
from ldm_vae.system.output_kinds import EXPORT, output_kind
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from tests.commands import command
from tests.pictures import save_pictures
from tests.tiny import LOSS, MODEL, TRAIN
from tests.training.runs import assert_bit_equal

RESIDUAL = MODEL | {"block_out_channels": [8, 16]}
MODELS: dict[str, dict[str, object]] = {
    "kl": RESIDUAL,
    "flux2": RESIDUAL | {"latent_channels": 3, "decoder_block_out_channels": [4, 8]},
    "vq": RESIDUAL | {"codebook_size": 32},
    "tiny": {"block_out_channels": [8, 8, 8], "layers_per_block": 1},
    "dc": {"block_out_channels": [8, 8, 16], "layers_per_block": 1, "attention_levels": [2], "latent_channels": 4},
    "vq of rounded channels": RESIDUAL | {"bottleneck": "fsq", "fsq_levels": [8, 5, 5, 5]},
}
SIDE = 32
RUN = TRAIN | {"max_train_steps": 4, "checkpointing_steps": 2, "validation_steps": 2, "log_steps": 1}


def test_every_family_is_here() -> None:
    assert {name.split()[0] for name in MODELS} == {family.name for family in FAMILIES.values()}


def own_latents(model: diffusers.ModelMixin, images: Tensor) -> Tensor:
    """What the class itself encodes to, without noise."""
    encoded = model.encode(images)
    if isinstance(model, diffusers.VQModel):
        return model.quantize(encoded.latents)[0]
    return encoded.latent_dist.mode() if "latent_dist" in encoded else encoded[0]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What the commands made of a family's tiny model, from photographs to an export and stored latents."""

    folder: Path
    family: type[Family]
    model: diffusers.ModelMixin
    """The export, as diffusers loads it."""
    images: Tensor
    """The photographs, [B, C, H, W] in [-1, 1]."""

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def vae(self) -> Path:
        return self.folder / "vae"

    @property
    def latents(self) -> Path:
        return self.folder / "latents"

    def stored(self, *, normalize: Normalize = "scaling") -> Tensor:
        return torch.stack([row.latents for row in LatentDataset(self.latents, normalize=normalize, verify=True)])


@pytest.fixture(scope="module", params=MODELS)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The run, its export and the encoded photographs of a family."""
    folder = tmp_path_factory.mktemp("walk")
    family = next(family for family in FAMILIES.values() if family.name == request.param.split()[0])
    photos = Path(save_pictures(folder / "photos", count=5, size=(SIDE, SIDE)))
    data = {"train": str(photos), "validation": str(photos), "resolution": SIDE, "num_workers": 0}
    recipe = {"model": {"family": family.name, **MODELS[request.param]}, "data": data, "loss": LOSS, "train": RUN}
    (folder / "recipe.json").write_text(json.dumps({"report_to": "none", **recipe}))
    command("train", config=folder / "recipe.json", output_dir=folder / "run")
    command("export", run=folder / "run", output=folder / "vae", num_workers=0)
    exact = {"dtype": "float32", "mixed_precision": "no", "num_workers": 0}
    command("encode", vae=folder / "vae", data=photos, output=folder / "latents", resolution=SIDE, **exact)
    with mock.patch.object(diffusers.configuration_utils.logger, "warning") as warned:
        model, told = getattr(diffusers, family.class_name()).from_pretrained(folder / "vae", output_loading_info=True)
        load_autoencoder(folder / "vae")
    assert not any(told.values()), told
    warned.assert_not_called()
    return Walk(
        folder=folder,
        family=family,
        model=model.eval(),
        images=torch.stack([to_tensor(Image.open(path)) for path in sorted(photos.glob("*.png"))]),
    )


def test_the_snippet_on_the_card_runs(walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (walk.vae / "README.md").read_text()
    assert f"from diffusers import {walk.family.class_name()}" in card
    shutil.copytree(walk.vae, tmp_path / "vae")
    shutil.copy(next(walk.photos.glob("*.png")), tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})
    assert (tmp_path / "reconstruction.png").is_file()


def test_the_export_is_known_as_one(walk: Walk) -> None:
    """So that it is never data, and may be replaced."""
    assert output_kind(walk.vae) == EXPORT


@torch.no_grad()
def test_stored_latents_are_the_class_s_own_and_normalise(walk: Walk) -> None:
    stored, normalised = walk.stored(normalize="none"), walk.stored()
    torch.testing.assert_close(stored, own_latents(walk.model, walk.images), rtol=1e-4, atol=1e-4)
    assert normalised.mean(dim=(0, 2, 3)).std() < 5
    restored = LatentDataset(walk.latents).denormalize(normalised)
    torch.testing.assert_close(restored, stored, rtol=1e-3, atol=1e-3)
    encoded = encode_images(load_autoencoder(walk.vae), walk.images)
    torch.testing.assert_close(encoded, normalised, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_latents_decode_to_the_class_s_own_pictures(walk: Walk, tmp_path: Path) -> None:
    expected = walk.model.decode(own_latents(walk.model, walk.images)).sample.clamp(-1, 1)
    command("decode", vae=walk.vae, latents=walk.latents, output=tmp_path / "pictures")
    pictures = [to_tensor(Image.open(path)) for path in sorted((tmp_path / "pictures").glob("*.png"))]
    torch.testing.assert_close(torch.stack(pictures), expected, rtol=0, atol=1.1 / 127.5)
    again = decode_latents(load_autoencoder(walk.vae), walk.stored())
    levels = np.stack([np.asarray(picture, dtype=float) for picture in again])
    assert np.abs(levels - (expected.permute(0, 2, 3, 1).numpy() + 1) * 127.5).max() < 1.5


def test_latents_are_verified_and_the_export_evaluated(walk: Walk, tmp_path: Path) -> None:
    command("latents verify", walk.latents, deep=True, vae=walk.vae, data=walk.photos)
    options = {"resolution": SIDE, "perceptual": "none", "num_workers": 0}
    command("evaluate", vae=walk.vae, data=walk.photos, output=tmp_path / "evaluation", **options)
    measured = json.loads((tmp_path / "evaluation/metrics.json").read_text())["evaluations"][0]["metrics"]
    assert measured["psnr"]["value"] > 0
    assert ("kl" in measured) == ("latent_dist" in walk.model.encode(walk.images))


def test_the_latent_space_is_explored(walk: Walk, tmp_path: Path) -> None:
    photos = sorted(walk.photos.glob("*.png"))
    data: dict[str, object] = {"vae": walk.vae, "data": walk.photos, "num_workers": 0, "num_images": 2}
    command("explore sample", vae=walk.vae, latents=walk.latents, count=2, output=tmp_path / "samples")
    assert Image.open(tmp_path / "samples/pictures/00001.png").size == (SIDE, SIDE)
    command("explore interpolate", *photos[:2], vae=walk.vae, steps=3, output=tmp_path / "way")
    assert Image.open(tmp_path / "way/spherical.png").size == (3 * SIDE, SIDE)
    (tmp_path / "others").mkdir()
    shutil.copy(photos[0], tmp_path / "others")
    examples = {"towards": walk.photos, "away_from": tmp_path / "others", "box": [0, 0, 8, 8]}
    command("explore edit", **data, **examples, output=tmp_path / "edited")
    assert len(list((tmp_path / "edited/pictures").iterdir())) == 4
    command("explore neighbours", photos[2], vae=walk.vae, latents=walk.latents, output=tmp_path / "near")
    nearest = json.loads((tmp_path / "near/neighbours.json").read_text())[0]
    assert nearest["row"] == 2
    assert nearest["distance"] < 1e-3
    command("explore augment", **data, output=tmp_path / "more")
    assert len(list((tmp_path / "more").glob("*-0.png"))) == 2


def test_an_interrupted_run_ends_bit_equal(walk: Walk, tmp_path: Path) -> None:
    shutil.copytree(walk.folder / "run", tmp_path / "cut", ignore=shutil.ignore_patterns("checkpoint-000004"))
    resumed = {"output_dir": tmp_path / "cut", "train.resume_from_checkpoint": "latest"}
    command("train", config=walk.folder / "recipe.json", **resumed)
    assert_bit_equal(tmp_path / "cut", walk.folder / "run")


def test_a_decoder_is_trained_further_on_the_same_latents(walk: Walk, tmp_path: Path) -> None:
    further = {"model.pretrained": walk.vae, "model.decoder_only": True, "train.max_train_steps": 2}
    command("train", config=walk.folder / "recipe.json", output_dir=tmp_path / "further", **further)
    trained = load_run_autoencoder(tmp_path / "further", checkpoint="latest", weights="raw").family.model.eval()
    with torch.no_grad():
        latents, of_trained = (own_latents(model, walk.images) for model in (walk.model, trained))
        torch.testing.assert_close(of_trained, latents, rtol=0, atol=0)
        assert (trained.decode(latents).sample - walk.model.decode(latents).sample).abs().max() > 1e-4


def test_a_probe_measures_it(walk: Walk, tmp_path: Path) -> None:
    options = {"no_diffusion": True, "resolution": SIDE, "perceptual": "none", "num_workers": 0}
    command("probe", vae=walk.vae, data=walk.photos, output=tmp_path / "probe", **options)
    panel = json.loads((tmp_path / "probe/metrics.json").read_text())["autoencoders"][0]["panel"]["figures"]
    with torch.no_grad():
        made = walk.model.decode(own_latents(walk.model, walk.images)).sample.clamp(-1, 1)
    levels = [((values + 1) * 127.5).round() for values in (walk.images, made)]
    error = (levels[0] - levels[1]).double().square().mean(dim=(1, 2, 3))
    assert panel["psnr"] == pytest.approx((10 * torch.log10(255**2 / error)).mean().item(), abs=0.02)
