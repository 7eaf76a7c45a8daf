"""Real results of tiny models, under names that try to become markup."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.evaluation.evaluate import evaluate
from ldm_vae.reporting.report import write_report
from ldm_vae.training.loop import train
from tests.pictures import save_pictures, smooth_picture
from tests.tiny import tiny_autoencoder, tiny_config

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
"""A name that a page must show as it is."""


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of two autoencoders on seven pictures, five of which are kept."""
    folder = tmp_path_factory.mktemp("evaluated")
    vaes = [folder / name for name in ("plain", HOSTILE)]
    for seed, vae in enumerate(vaes):
        tiny_autoencoder(seed=seed).save_pretrained(vae)
    photos = Path(save_pictures(folder / "photos", count=5, size=(48, 32)))
    smooth_picture(64, 48).save(photos / f"{HOSTILE}.png")
    smooth_picture(48, 64).save(photos / "\u202egnp.exe\u2028.png")
    (photos / "broken.png").write_bytes(b"no picture")
    options = {"resolution": [32], "num_workers": 0, "perceptual": "none", "report_pictures": 5, "panel": True}
    evaluate(EvaluateOptions(vae=list(map(str, vaes)), data=str(photos), output=str(folder / "out"), **options))  # type: ignore[arg-type]
    return folder / "out"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve updates with the GAN, validated twice."""
    folder = tmp_path_factory.mktemp("trained")
    photos = save_pictures(folder / "photos", count=4, size=(32, 32))
    train(
        tiny_config(
            output_dir=folder / "run",
            report=True,
            data={"train": photos, "validation": photos},
            train={"max_train_steps": 12, "log_steps": 1, "validation_steps": 6, "checkpointing_steps": 12},
        )
    )
    return folder / "run"


@pytest.fixture(scope="session")
def report(evaluated: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of both."""
    return write_report([evaluated, trained], output=tmp_path_factory.mktemp("report") / "report.html")
