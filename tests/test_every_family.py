"""Every family from the first update to pictures decoded from stored latents, by the commands a user gives."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_vae import LatentDataset, decode_latents, encode_images, load_autoencoder
from ldm_vae.cli import main
from ldm_vae.images.transforms import to_tensor
from ldm_vae.models.families import FAMILIES
from tests.pictures import save_pictures
from tests.tiny import LOSS, MODEL, TRAIN

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


@pytest.mark.parametrize("name", MODELS)
def test_train_export_encode_decode_and_evaluate(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Path(save_pictures(tmp_path / "photos", count=5, size=(SIDE, SIDE)))
    recipe = tmp_path / "recipe.json"
    data = {"train": str(photos), "validation": str(photos), "resolution": SIDE, "num_workers": 0}
    model_fields = {"family": name.split()[0], **MODELS[name]}
    recipe.write_text(
        json.dumps({"report_to": "none", "model": model_fields, "data": data, "loss": LOSS, "train": RUN})
    )
    main(["train", "--config", str(recipe), "--output_dir", str(tmp_path / "run")])

    main(["export", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "vae"), "--num_workers", "0"])
    family = next(family for family in FAMILIES.values() if family.name == name.split()[0])
    model = getattr(diffusers, family.class_name()).from_pretrained(tmp_path / "vae").eval()
    images = torch.stack([to_tensor(Image.open(path)) for path in sorted(photos.glob("*.png"))])
    card = (tmp_path / "vae/README.md").read_text()
    assert f"from diffusers import {family.class_name()}" in card
    shutil.copy(next(photos.glob("*.png")), tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})
    assert (tmp_path / "reconstruction.png").is_file()

    main(
        [
            "encode",
            "--vae",
            str(tmp_path / "vae"),
            "--data",
            str(photos),
            "--output",
            str(tmp_path / "latents"),
            "--resolution",
            str(SIDE),
            "--dtype",
            "float32",
            "--mixed_precision",
            "no",
            "--num_workers",
            "0",
        ]
    )
    with torch.no_grad():
        z = own_latents(model, images)
        reconstructions = model.decode(z).sample
    dataset = LatentDataset(tmp_path / "latents", normalize="none", verify=True)
    stored = torch.stack([row.latents for row in dataset])
    torch.testing.assert_close(stored, z, rtol=1e-4, atol=1e-4)

    normalised = torch.stack([row.latents for row in LatentDataset(tmp_path / "latents")])
    loaded = load_autoencoder(tmp_path / "vae")
    torch.testing.assert_close(encode_images(loaded, images), normalised, rtol=1e-3, atol=1e-3)
    assert normalised.mean(dim=(0, 2, 3)).std() < 5
    torch.testing.assert_close(
        LatentDataset(tmp_path / "latents").denormalize(normalised), stored, rtol=1e-3, atol=1e-3
    )

    main(
        [
            "decode",
            "--vae",
            str(tmp_path / "vae"),
            "--latents",
            str(tmp_path / "latents"),
            "--output",
            str(tmp_path / "pictures"),
        ]
    )
    pictures = [to_tensor(Image.open(path)) for path in sorted((tmp_path / "pictures").glob("*.png"))]
    expected = reconstructions.clamp(-1, 1)
    torch.testing.assert_close(torch.stack(pictures), expected, rtol=0, atol=1.1 / 127.5)
    again = decode_latents(loaded, normalised)
    difference = np.abs(
        np.stack([np.asarray(picture, dtype=float) for picture in again])
        - (expected.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    )
    assert difference.max() < 1.5

    main(
        [
            "latents",
            "verify",
            str(tmp_path / "latents"),
            "--deep",
            "--vae",
            str(tmp_path / "vae"),
            "--data",
            str(photos),
        ]
    )
    capsys.readouterr()
    main(
        [
            "evaluate",
            "--vae",
            str(tmp_path / "vae"),
            "--data",
            str(photos),
            "--output",
            str(tmp_path / "evaluation"),
            "--resolution",
            str(SIDE),
            "--perceptual",
            "none",
            "--num_workers",
            "0",
        ]
    )
    measured = json.loads((tmp_path / "evaluation/metrics.json").read_text())["evaluations"][0]["metrics"]
    assert measured["psnr"]["value"] > 0
    assert ("kl" in measured) == ("latent_dist" in model.encode(images))
