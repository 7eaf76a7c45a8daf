"""The panel on tiny autoencoders: figures against a plain computation, and the same on one process and on two."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.evaluation.evaluate import evaluate
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.panel.measures import MEASURES
from ldm_vae.system.pixels import to_pixels
from ldm_vae.system.randomness import sample_rng
from ldm_vae.system.strict_json import dump_json
from tests.launching import run_launch
from tests.pictures import picture
from tests.tiny import tiny_autoencoder

SIDE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures in two classes, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(9):
        path = folder / ("a" if i % 2 else "b") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture(i, size=(SIDE, SIDE)).save(path)
    broken = folder / "a" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("vaes")
    for name, fields in {"f2": {}, "f4": {"widths": (8, 16, 16), "latent_channels": 3}}.items():
        tiny_autoencoder(**fields).save_pretrained(folder / name)  # type: ignore[arg-type]
    return [str(folder / name) for name in ("f2", "f4")]


def options(vaes: list[str], photos: Path, output: Path, **changes: object) -> EvaluateOptions:
    values: dict[str, object] = {"resolution": [SIDE], "perceptual": "efficientnet_lite0", "batch_size": 2}
    values |= {"num_workers": 0, "num_pictures": 0, "panel": True}
    return EvaluateOptions(vae=vaes, data=str(photos), output=str(output), **(values | changes))  # type: ignore[arg-type]


def plain_psnr(images: Tensor, decoded: Tensor) -> float:
    error = (to_pixels(images).double() - to_pixels(decoded).double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(255**2 / error)).mean().item()


def test_figures_are_those_of_a_plain_computation(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    summary = evaluate(options(vaes, photos, tmp_path / "out"))
    panel = summary.evaluations[0].panel
    assert panel is not None
    assert panel.num_images == 8
    assert set(panel.figures) == set(MEASURES)  # with labels and a perceptual network there is all of it
    assert panel.figures["psnr"] == pytest.approx(summary.evaluations[0]["psnr"], rel=1e-4)

    dataset = EvaluationImages(open_collection(str(photos)), channels=3, resolution=SIDE)
    samples = [dataset[i].image for i in range(9)]
    images = torch.stack([image for image in samples if image is not None])
    model = AutoencoderKL.from_pretrained(vaes[0]).eval()
    with torch.no_grad():
        posterior = model.encode(images).latent_dist
        mean, std = posterior.mean, posterior.std
        mirrored = [model.encode(images.flip(axis)).latent_dist.mean for axis in (-1, -2)]
        decoded = [model.decode(mean.flip(axis)).sample for axis in (-1, -2)]
    samples_std = (mean.var(dim=(0, 2, 3), unbiased=False) + std.square().mean(dim=(0, 2, 3))).sqrt()
    centre = mean.mean(dim=(0, 2, 3))[:, None, None]

    def normalised(z: Tensor) -> Tensor:
        return (z - centre) / samples_std[:, None, None]

    pairs = [(normalised(moved), normalised(mean.flip(axis))) for moved, axis in zip(mirrored, (-1, -2), strict=True)]
    error = sum((moved - flipped).square().sum() for moved, flipped in pairs)
    size = sum(moved.square().sum() for moved, _ in pairs)
    assert panel.figures["equivariance_flip"] == pytest.approx(float(error / size) ** 0.5, rel=1e-3)  # type: ignore[operator]
    expected = [plain_psnr(images.flip(axis), each) for axis, each in zip((-1, -2), decoded, strict=True)]
    assert panel.figures["equivariance_psnr_flip"] == pytest.approx(sum(expected) / 2, abs=0.01)
    kl = (mean.square() + std.square() - 1).div(2) - std.log()
    bits = kl.sum().item() / math.log(2) / (len(images) * SIDE**2)
    assert panel.figures["bits_per_pixel"] == pytest.approx(bits, rel=1e-3)
    generators = [sample_rng(i, seed=0, stream="panel/noise") for i in range(9) if samples[i] is not None]
    noise = torch.stack([torch.from_numpy(each.standard_normal((4, 16, 16), dtype=np.float32)) for each in generators])
    with torch.no_grad():
        decoded = [model.decode(mean + 0.5 * noise * samples_std[:, None, None]).sample]
    assert panel.figures["robustness_psnr_0.5"] == pytest.approx(plain_psnr(images, decoded[0]), abs=0.01)


def test_what_is_written_and_said(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    summary = evaluate(options(vaes[:1], photos, tmp_path / "out", perceptual="none", num_images=4))
    written = json.loads(summary.metrics.read_text())["evaluations"][0]["panel"]
    panel = summary.evaluations[0].panel
    assert panel is not None
    assert written["figures"] == panel.figures
    assert "perceptual" not in written["figures"]
    assert len(written["channels"]["slope"]) == 4
    assert "| spectrum_distance" in summary.table.read_text()
    assert "| equivariance_rotation" in str(summary)
    with pytest.raises(ValueError, match="panel turns and scales square pictures; give it a resolution"):
        options(vaes, photos, tmp_path / "whole", resolution=None)


@pytest.mark.processes
def test_two_processes_find_the_very_figures_of_one(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    alone = evaluate(options(vaes, photos, tmp_path / "alone"))
    run_launch(evaluate, options(vaes, photos, tmp_path / "both"), folder=tmp_path)
    both = json.loads((tmp_path / "both" / "metrics.json").read_text())["evaluations"]
    for one, two in zip(alone.evaluations, both, strict=True):
        assert one.panel is not None
        assert two["panel"] == json.loads(dump_json(asdict(one.panel)))
