"""A run with a likelihood learns the density of its data, where that is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae.models import families
from ldm_vae.training import state
from ldm_vae.training.loop import train
from tests.density.linear import Linear, Ppca, linear_samples
from tests.density.runs import measure
from tests.tiny import tiny_config

SIDE, COUNT = 16, 24


def test_a_linear_run_finds_the_density_of_linear_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilistic PCA, trained by gradients on 8-bit pictures: bound and noise are those of the closed form."""
    samples = linear_samples(COUNT * SIDE**2).reshape(COUNT, SIDE, SIDE, 3)
    levels = ((samples + 1) * 127.5).round().clamp(0, 255)
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(levels.numpy().astype(np.uint8)):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number:02d}.png")
    torch.manual_seed(0)
    family = Linear.build(tiny_config().model)
    monkeypatch.setitem(families.FAMILIES, family.class_name(), Linear)
    monkeypatch.setattr(state, "build_autoencoder", lambda config: family)
    config = tiny_config(
        output_dir=tmp_path / "run",
        model={"latent_channels": 2},
        data={"train": str(tmp_path / "pictures"), "resolution": SIDE, "crop": "center", "flip": False},
        loss={"likelihood": "gaussian", "beta": 1.0, "disc_weight": 0.0, "logvar_init": -4.0},
        train={"batch_size": 4, "max_train_steps": 300, "learning_rate": 0.05, "lr_scheduler": "cosine",
               "ema_decay": 0.0, "log_steps": 50, "validation_steps": 300, "checkpointing_steps": 300},
    )  # fmt: skip
    train(config)

    summary = measure(tmp_path / "run", tmp_path / "pictures", tmp_path / "out", resolution=SIDE, samples=5)
    dequantised = levels + torch.rand(levels.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    ppca = Ppca((dequantised / 127.5 - 1).flatten(0, 2).double(), latent_channels=2)
    images = (dequantised / 127.5 - 1).permute(0, 3, 1, 2)
    exact = -(ppca.log_density(images) / (images[0].numel() * math.log(2))).mean().item() + math.log2(127.5)
    assert summary.bounds["elbo"].value == pytest.approx(exact, abs=0.02)
    assert summary.bounds["iwae"].value == pytest.approx(exact, abs=0.02)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["likelihood"]["std"] == pytest.approx(math.sqrt(ppca.variance), rel=0.05)

    # The loss is the bound, in nats a dimension.
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "loss" in line)
    assert last["loss"] == pytest.approx(last["nll"] + last["kl"], rel=1e-6)
    assert last["loss"] / math.log(2) == pytest.approx(exact, abs=0.05)
