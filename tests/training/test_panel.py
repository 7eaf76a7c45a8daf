"""The panel in a run: of which weights, when, and without a trace in what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm_vae.config.rules import FieldError
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.precision import exact_float32, same_float32
from ldm_vae.panel.measures import MEASURES
from ldm_vae.panel.panel import measure_panels
from ldm_vae.panel.sums import PanelImages
from ldm_vae.training.loop import train
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from ldm_vae.training.run_folder import RunFolder
from tests.tiny import tiny_config


def run_with(pictures: Path, folder: Path, *, panel_steps: int | None) -> RunFolder:
    data = {"train": str(pictures), "validation": str(pictures), "validation_images": 5, "resolution": 16}
    train(tiny_config(output_dir=folder, data=data, train={"max_train_steps": 5, "panel_steps": panel_steps}))
    return RunFolder(folder)


def test_the_averaged_weights_are_measured_and_nothing_else_changes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run, plain = (
        run_with(pictures, tmp_path / name, panel_steps=steps) for name, steps in (("run", 2), ("plain", None))
    )
    assert torch.backends.cudnn.allow_tf32  # the panel's own precision isn't the run's
    last = run.checkpoints()[-1]
    for path in plain.checkpoints()[-1].glob("*.safetensors"):
        ours, without = load_file(last / path.name), load_file(path)
        assert all(torch.equal(ours[name], without[name]) for name in without), path.name

    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    panels = [line for line in lines if "panel/psnr" in line]
    assert [line["step"] for line in panels] == [2, 4, 5]
    measured = {name.removeprefix("panel/"): value for name, value in panels[-1].items() if name != "step"}
    assert measured.pop("num_images") == 5
    assert measured.keys() <= MEASURES.keys()
    images = PanelImages(
        dataset=EvaluationImages(open_collection(str(pictures)), channels=3, resolution=16),
        indices=range(5),
        batch_size=16,
        num_workers=0,
        perceptual=None,
    )
    saved = load_run_autoencoder(run.path, checkpoint=last.name, weights="ema").family
    (panel,), _, _ = measure_panels([InferenceAutoencoder(saved, bf16=False)], images)
    assert measured == panel.figures
    raw = load_run_autoencoder(run.path, checkpoint=last.name, weights="raw").family
    (of_raw,), _, _ = measure_panels([InferenceAutoencoder(raw, bf16=False)], images)
    assert measured != of_raw.figures


def test_it_needs_validation_images(pictures: Path) -> None:
    with pytest.raises(FieldError, match=r"panel_steps measures validation images; name them with data.valid"):
        tiny_config(data={"train": str(pictures)}, train={"panel_steps": 2})


def test_the_precision_of_float32_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel in float32 is exact, and the run goes on with the products it had."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with same_float32():
        exact_float32()
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32
