"""Images of any number of channels, from files of numbers to latents and back, by the commands a user gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae import LatentDataset, decode_latents, encode_images, load_autoencoder
from ldm_vae.cli import main
from ldm_vae.config.rules import FieldError
from ldm_vae.images.collection import open_collection
from ldm_vae.models.families import FAMILIES
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


@pytest.mark.parametrize("kind", KINDS)
def test_train_evaluate_export_encode_and_decode(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, loss = KINDS[kind]["channels"], KINDS[kind]["loss"]
    data = write_numbers(tmp_path / "data", channels=channels)
    declared = ["--value_range", *map(str, RANGE)]
    fields = {"train": str(data), "validation": str(data), "resolution": SIDE, "num_workers": 0, "value_range": RANGE}
    model = MODEL | {"in_channels": channels}
    recipe = tmp_path / "recipe.json"
    recipe.write_text(
        json.dumps({"report_to": "none", "model": model, "data": fields, "loss": LOSS | loss, "train": RUN})
    )
    main(["train", "--config", str(recipe), "--output_dir", str(tmp_path / "run")])
    assert Image.open(tmp_path / "run/samples/step-000003.png").width > SIDE
    common = ["--num_workers", "0", "--overwrite"]
    main(["export", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "vae"), *common])
    vae = str(tmp_path / "vae")

    # The card says what the numbers are, and its snippet runs.
    card = (tmp_path / "vae/README.md").read_text()
    assert f"{channels}-channel images" in card
    assert "Images are arrays of numbers, of which the range (0 to 10000) becomes [-1, 1]" in card
    assert card.count("\n| ") > 2 * channels
    np.save(tmp_path / "image.npy", np.load(data / "0.npy")[:SIDE, :SIDE])
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})
    assert np.load("reconstruction.npy").shape == (SIDE, SIDE, channels)

    # Figures of each channel, by plain formulas.
    seen = ["--perceptual_channels", "3", "2", "1"] if loss else []
    output = tmp_path / "evaluation"
    arguments = [
        "--vae",
        vae,
        "--data",
        str(data),
        "--output",
        str(output),
        "--resolution",
        str(SIDE),
        "--per_channel",
    ]
    main(["evaluate", *arguments, *declared, *seen, *common])
    figures = json.loads((output / "metrics.json").read_text())["evaluations"][0]
    collection = open_collection(str(data), rules=RULES)
    originals = torch.stack([centre(collection, i, channels) for i in range(5)])
    family = load_autoencoder(vae)
    with torch.no_grad():
        made = family(originals).sample.clamp(-1, 1)
    errors = ((originals - made) / 2).double().square()
    psnr = (-10 * errors.mean(dim=(2, 3)).log10()).mean(0)
    assert figures["image_channels"]["psnr"] == pytest.approx(psnr.tolist(), abs=1e-3)
    values = (originals.double() + 1) / 2 * RANGE[1]
    assert figures["image_channels"]["mean"] == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), rel=1e-5)
    assert figures["image_channels"]["std"] == pytest.approx(
        values.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-3
    )
    assert figures["metrics"]["psnr"]["value"] == pytest.approx(
        (-10 * errors.mean(dim=(1, 2, 3)).log10()).mean().item(), abs=1e-3
    )
    assert ("efficientnet_lite0" in figures["metrics"]) == bool(loss)

    # Latents and back, in the units of the data.
    latents = str(tmp_path / "latents")
    main(["encode", "--vae", vae, "--data", str(data), "--output", latents, "--resolution", str(SIDE), *declared,
          "--dtype", "float32", "--mixed_precision", "no", *common])  # fmt: skip
    with torch.no_grad():
        mean = family.encode(originals).latent_dist.mode()
    dataset = LatentDataset(latents, normalize="none")
    torch.testing.assert_close(torch.stack([dataset[i].latents for i in range(5)]), mean, rtol=1e-4, atol=1e-5)
    main(["decode", "--vae", vae, "--latents", latents, "--output", str(tmp_path / "decoded")])
    for i in range(5):
        array = np.load(tmp_path / "decoded" / f"{i}.npy")
        assert (array.shape, array.dtype) == ((SIDE, SIDE, channels), np.float32)
        expected = (made[i].permute(1, 2, 0).numpy() + 1) / 2 * RANGE[1]
        np.testing.assert_allclose(array, expected, atol=0.5)
    with pytest.raises(SystemExit):
        main(["decode", "--vae", vae, "--latents", latents, "--output", str(tmp_path / "no"), "--format", "png"])
    assert f"--format is png, but --vae {vae} makes {channels} channels" in capsys.readouterr().err

    # The same in Python.
    arrays = originals.permute(0, 2, 3, 1).numpy()
    again = encode_images(family, arrays, normalize="none")
    torch.testing.assert_close(again, mean, rtol=1e-4, atol=1e-5)
    decoded = decode_latents(family, again, normalize="none")[0]
    assert isinstance(decoded, np.ndarray)
    np.testing.assert_allclose(decoded, made[0].permute(1, 2, 0).numpy(), atol=1e-4)


def centre(collection: Any, index: int, channels: int) -> torch.Tensor:
    """The middle square of an image at the run's resolution."""
    from ldm_vae.images.evaluation import EvaluationImages

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
    for command in ("encode", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--vae", str(tmp_path / "vae"), "--data", photos, "--output", str(tmp_path / "out")])
        error = capsys.readouterr().err.strip()
        assert "value_range is missing: pictures have 1, 3 or 4 channels, and the model takes 5" in error
        assert "\n" not in error
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays/x.npy").write_bytes(npy(np.zeros((8, 8, 5))))
    arguments = ["--data", str(tmp_path / "arrays"), "--output", str(tmp_path / "out"), "--value_range", "0", "1"]
    with pytest.raises(SystemExit):
        main(["evaluate", "--vae", str(tmp_path / "vae"), *arguments, "--perceptual", "efficientnet_lite0"])
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
