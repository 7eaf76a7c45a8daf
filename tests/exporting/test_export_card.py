"""The card of an export: its own snippet run, what it tells, and its upload."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import ModelCard, constants
from PIL import Image

from ldm_vae.config.model import ModelConfig
from tests.exporting.hub_standin import REPO, TOKEN, Hub
from tests.exporting.runs import export_run, train_run
from tests.pictures import save_pictures


@pytest.mark.parametrize(
    ("options", "mode", "tolerance"),
    [
        ({}, "RGB", {"rtol": 1e-5, "atol": 1e-5}),
        ({"dtype": "float16", "target": "sd3"}, "RGB", {"rtol": 0, "atol": 0.01}),
        ({"target": "sdxl", "per_channel": True}, "L", {"rtol": 1e-5, "atol": 1e-5}),
    ],
)
def test_the_card_s_snippet_runs(
    options: dict[str, object],
    mode: str,
    tolerance: dict[str, float],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export_run(run, tmp_path / "vae", **options)
    snippet = re.findall(r"```python\n(.*?)```", (tmp_path / "vae" / "README.md").read_text(), flags=re.DOTALL)[0]
    Image.open(run.parent / "photos" / "0000.png").convert(mode).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(snippet, "README.md", "exec"), names)
    assert Image.open(tmp_path / "reconstruction.png").size == (16, 16)

    autoencoder, images, latents = names["vae"], names["images"], names["latents"]
    assert isinstance(autoencoder, AutoencoderKL)
    torch.manual_seed(0)
    with torch.no_grad():
        z = autoencoder.encode(images).latent_dist.sample().float()
    config = autoencoder.config
    mean, std = 0.0 if config.shift_factor is None else config.shift_factor, 1.0
    if config.latents_mean is not None:
        mean, std = (torch.tensor(config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(latents, (z - mean) * config.scaling_factor / std, check_dtype=False, **tolerance)
    torch.testing.assert_close(names["z"], z, check_dtype=False, **tolerance)


def test_the_card_tells_recipe_metrics_and_licence_and_no_path(run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae", license="apache-2.0")
    card = ModelCard.load(tmp_path / "vae" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "diffusers"
    assert str(tmp_path) not in str(card)
    assert str(run.parent) not in str(card)
    assert f"{summary.metrics['psnr'].value:.5g} dB" in card.text
    assert "3 images of `held_out` (validation images)" in card.text
    assert "cropped to 16x16" in card.text
    strips = json.loads((tmp_path / "vae" / "measurements.json").read_text())["strips"]
    assert (strips["width"], strips["height"]) == (32, 32)
    assert 0 < max(strips["latent_error"], strips["picture_error"]) < 1e-5
    assert "measured at 16x16 alone" in card.text
    assert "checked at 32x32" in card.text
    assert f"at most {strips['latent_error']:.1e} (encoder)" in card.text
    assert "block_out_channels: [8, 16]" in card.text
    picture = Image.open(tmp_path / "vae" / "reconstruction.png")
    assert picture.height > 3 * 16
    measurements = json.loads((tmp_path / "vae" / "measurements.json").read_text())
    assert measurements["latents"]["num_images"] == 6
    assert (measurements["latents"]["data"], measurements["latents"]["data_kind"]) == ("photos", "training images")
    assert measurements["reconstruction"]["data"] == "held_out"
    assert measurements["precision"]["magnitudes"]["decoder.conv_out"] > 0


def test_names_with_markup_and_newlines_are_shown_as_they_are(tmp_path: Path) -> None:
    model = ModelConfig(block_out_channels=[8], layers_per_block=1, norm_num_groups=4)
    run = train_run(tmp_path, model)
    data = save_pictures(tmp_path / "a`b\n# not a heading", count=2, size=(16, 16))
    name = "*vae*\n```[x]|\x1b[2J"
    summary = export_run(run, tmp_path / name, data=data)
    card = (tmp_path / name / "README.md").read_text()
    assert "\x1b" not in card + str(summary)
    assert str(summary).startswith(f"{tmp_path}/*vae*\\n```[x]|\\x1b[2J: checkpoint-000002")
    assert r"# \*vae\*\\n\`\`\`\[x\]\|\\x1b\[2J" in card.splitlines()
    assert "``a`b\\n# not a heading``" in card
    assert "# not a heading" not in card.splitlines()
    load = re.findall(r"from_pretrained\((.*)\)\.eval", card)[0]
    assert eval(load) == name


def test_push_to_hub_uploads_the_whole_export(
    run: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    summary = export_run(run, tmp_path / "vae", push_to_hub=REPO)
    assert f"uploaded to {hub.endpoint}/{REPO}" in str(summary)
    assert hub.visibilities == ["private"]
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    assert f'from_pretrained("{REPO}")'.encode() in hub.files["README.md"]
