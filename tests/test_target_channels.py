"""Models that make other channels than they take: which of the images' channels are compared, and where it is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae.cli import main
from ldm_vae.config.rules import FieldError
from ldm_vae.config.views import View
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.models.trainable import PairRules, TrainableAutoencoder
from ldm_vae.training.state import build_state
from ldm_vae.training.step import TrainingStep
from tests.pictures import picture
from tests.tiny import LOSS, MODEL, TRAIN, random_images, tiny_config, tiny_family

SIDE = 16
RGBA_TO_RGB = {"in_channels": 4, "out_channels": 3}
RUN = TRAIN | {"max_train_steps": 3, "checkpointing_steps": 3, "validation_steps": 3, "log_steps": 1}
RANGES = [0.0, 1000.0, -10.0, 10.0, 0.0, 1.0]
"""Of three bands, each in its own units."""
TARGETS = [2, 0]


def write_bands(folder: Path, *, count: int = 4) -> np.ndarray:
    """Write smooth images of three bands and return what is in them, as parts of their ranges, [n, 3, H, W]."""
    folder.mkdir()
    lows, highs = np.array(RANGES[0::2]), np.array(RANGES[1::2])
    parts = []
    for i in range(count):
        bands = [np.asarray(picture(100 * i + band, size=(SIDE, SIDE), mode="L")) / 255 for band in range(3)]
        parts.append(np.stack(bands))
        np.save(folder / f"{i}.npy", (np.stack(bands, axis=-1) * (highs - lows) + lows).astype(np.float32))
    return np.stack(parts)


def test_bands_in_and_other_bands_out_from_training_to_decoded_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    parts = write_bands(data)
    declared = ["--value_range", *map(str, RANGES)]
    fields = {"train": str(data), "validation": str(data), "resolution": SIDE, "num_workers": 0}
    fields |= {"value_range": RANGES, "target_channels": TARGETS, "flip": False, "crop": "center"}
    recipe = tmp_path / "recipe.json"
    model = MODEL | {"in_channels": 3, "out_channels": 2}
    recipe.write_text(json.dumps({"report_to": "none", "model": model, "data": fields, "loss": LOSS, "train": RUN}))
    main(["train", "--config", str(recipe), "--output_dir", str(tmp_path / "run")])
    common = ["--num_workers", "0"]
    main(["export", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "vae"), *common])
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    assert (vae.config.in_channels, vae.config.out_channels) == (3, 2)

    # What the class itself makes, and how far it is from the two channels.
    images = torch.from_numpy(parts * 2 - 1).float()
    with torch.no_grad():
        made = vae(images).sample.clamp(-1, 1)
    errors = ((images[:, TARGETS] - made) / 2).double().square()
    psnr = (-10 * errors.mean(dim=(1, 2, 3)).log10()).mean().item()
    validated = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["validation/psnr"] for line in validated if "validation/psnr" in line] == [
        pytest.approx(psnr, abs=1e-3)
    ]
    measured = json.loads((tmp_path / "vae/measurements.json").read_text())["reconstruction"]["metrics"]
    assert measured["psnr"]["value"] == pytest.approx(psnr, abs=1e-3)
    card = (tmp_path / "vae/README.md").read_text()
    assert "3-channel images, of which it makes channels 2, 0" in card
    (tmp_path / "image.npy").write_bytes((data / "0.npy").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})
    of_targets = np.array([[0.0, 1.0], [0.0, 1000.0]])
    units = (made.permute(0, 2, 3, 1).numpy() + 1) / 2 * (of_targets[:, 1] - of_targets[:, 0]) + of_targets[:, 0]
    sampled = np.load("reconstruction.npy")
    assert sampled.shape == (SIDE, SIDE, 2)
    assert (sampled >= 0).all()
    assert sampled[..., 0].max() <= 1 < sampled[..., 1].max() <= 1000

    evaluation = ["evaluate", "--vae", "vae", "--data", str(data), "--output", "evaluation", "--resolution", str(SIDE)]
    evaluation += ["--per_channel", *declared, *common]
    with pytest.raises(SystemExit):
        main(evaluation)
    error = capsys.readouterr().err
    assert "target_channels is empty, but --vae vae makes 2 channels of 3; name the 2 channels" in error
    main([*evaluation, "--target_channels", *map(str, TARGETS)])
    found = json.loads((tmp_path / "evaluation/metrics.json").read_text())["evaluations"][0]
    assert found["metrics"]["psnr"]["value"] == pytest.approx(psnr, abs=1e-3)
    per_channel = (-10 * errors.mean(dim=(2, 3)).log10()).mean(0)
    assert found["image_channels"]["psnr"] == pytest.approx(per_channel.tolist(), abs=1e-3)
    means = images[:, TARGETS].double().mean(dim=(0, 2, 3)).add(1).div(2) * torch.tensor([1.0, 1000.0])
    assert found["image_channels"]["mean"] == pytest.approx(means.tolist(), rel=1e-4)
    assert "beside channels 2, 0 of the image" in found["protocol"]["pictures"]

    main(["encode", "--vae", "vae", "--data", str(data), "--output", "latents", "--resolution", str(SIDE), *declared,
          "--dtype", "float32", "--mixed_precision", "no", *common])  # fmt: skip
    decoding = ["decode", "--vae", "vae", "--latents", "latents", "--output", "decoded"]
    with pytest.raises(SystemExit):
        main(decoding)
    assert "target_channels is empty; a range was declared for each of 3 channels" in capsys.readouterr().err
    main([*decoding, "--target_channels", *map(str, TARGETS)])
    for i in range(len(parts)):
        np.testing.assert_allclose(np.load(f"decoded/{i}.npy"), units[i], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", ["kl", "flux2", "vq", "tiny"])
def test_every_family_but_dc_makes_other_channels_than_it_takes(family: str) -> None:
    fields: dict[str, Any] = {"family": family, "block_out_channels": [8, 8], **RGBA_TO_RGB}
    model = tiny_family(**fields)
    assert (model.in_channels, model.out_channels) == (4, 3)
    assert model.reconstruct(random_images(4, side=SIDE)).images.shape == (2, 3, SIDE, SIDE)
    config = tiny_config(model=fields, data={"resolution": SIDE, "target_channels": [0, 1, 2]}, loss={"disc_start": 0})
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    step = TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)
    step(iter([step.grey_batch(4, resolution=SIDE)]))
    state.meter.read()
    with pytest.raises(FieldError, match="the family dc makes as many as it takes"):
        tiny_config(model=fields | {"family": "dc"}, data={"target_channels": [0, 1, 2]})


def test_images_transformed_with_latents_are_compared_in_the_target_too() -> None:
    family = tiny_family(**RGBA_TO_RGB)
    trainable = TrainableAutoencoder(
        family,
        decoder_only=False,
        learn_logvar=False,
        logvar_init=0.0,
        pair=PairRules(decode=True),
        target_channels=[3, 0, 1],
    )
    images, noise = random_images(4, side=SIDE), torch.zeros(2, 4, SIDE // 2, SIDE // 2)
    draws = {"pair_scale": 1.0, "rotation": torch.tensor([2, 2]), "mirror": torch.tensor([False, False])}
    output = trainable(images, noise, draws)
    torch.testing.assert_close(output.images, images[:, [3, 0, 1]], rtol=0, atol=0)
    assert output.pair is not None
    torch.testing.assert_close(output.pair.images, images[:, [3, 0, 1]].flip(-1, -2), rtol=0, atol=0)


def test_alpha_is_known_where_channels_keep_their_places() -> None:
    pictures = {"in_channels": 4}
    assert tiny_config(model=pictures, data={"target_channels": [0, 1, 2, 3]}).view == View((0, 1, 2), alpha=3)
    assert tiny_config(model=pictures, data={"target_channels": [3, 0, 1, 2]}).view is None
    assert tiny_config(model=RGBA_TO_RGB, data={"target_channels": [0, 1, 2]}).view == View((0, 1, 2))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (RGBA_TO_RGB, {}, r"data\.target_channels is empty, but the model makes model\.out_channels 3 of"),
        (RGBA_TO_RGB, {"target_channels": [0, 1]}, "names 2 channels, and the model makes 3; set"),
        (RGBA_TO_RGB, {"target_channels": [0, 1, 4]}, r"is \[0, 1, 4\]; images of model\.in_channels 4 have channels"),
        ({}, {"target_channels": [0]}, r"names 1 channels, and the model makes 3; set model\.out_channels to 1"),
        ({"in_channels": 1, "out_channels": 2}, {"target_channels": [0, 0], "mel_frames": 8, "flip": False},
         r"data\.mel_frames makes images of one channel of sounds; set model\.out_channels to 1"),
    ],
)  # fmt: skip
def test_what_is_not_said_of_the_target_is_refused(model: dict[str, Any], data: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message) as raised:
        tiny_config(model=model, data=data)
    assert "\n" not in str(raised.value)


def test_a_pretrained_model_of_other_channels_is_refused(tmp_path: Path) -> None:
    tiny_family(**RGBA_TO_RGB).model.save_pretrained(tmp_path / "vae")
    with pytest.raises(FieldError, match=r"model\.out_channels is 4, but .*vae makes 3"):
        tiny_family(pretrained=str(tmp_path / "vae"), in_channels=4)
    assert tiny_family(pretrained=str(tmp_path / "vae"), **RGBA_TO_RGB).out_channels == 3


def test_a_probe_compares_samples_with_the_target(tmp_path: Path) -> None:
    """The originals' features are of the colours that the model makes, whatever alpha says."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.asarray(picture(i, size=(32, 32), mode="RGBA"))).save(folder / f"{i}.png")
    tiny_family(**RGBA_TO_RGB).model.save_pretrained(tmp_path / "vae")
    probe = ["probe", "--vae", str(tmp_path / "vae"), "--data", str(folder), "--output", str(tmp_path / "probe"),
             "--no_diffusion", "--resolution", "32", "--num_workers", "0", "--perceptual", "none"]  # fmt: skip
    with pytest.raises(SystemExit):
        main(probe)
    main([*probe, "--target_channels", "0", "1", "2"])
    panel = json.loads((tmp_path / "probe/metrics.json").read_text())["autoencoders"][0]["panel"]["figures"]
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    opened = EvaluationImages(open_collection(str(folder)), channels=4, resolution=32)
    images = torch.stack([opened[i].image for i in range(4)])
    with torch.no_grad():
        made = vae(images).sample.clamp(-1, 1)
    levels = ((images[:, :3] + 1) * 127.5).round() - ((made + 1) * 127.5).round()
    expected = -10 * (levels.double().square().mean(dim=(1, 2, 3)) / 255**2).log10()
    assert panel["psnr"] == pytest.approx(expected.mean().item(), abs=1e-3)
