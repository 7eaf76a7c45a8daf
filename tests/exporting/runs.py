"""Tiny runs to export, and what is compared with them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.data import DataConfig
from ldm_vae.config.loss import LossConfig
from ldm_vae.config.model import ModelConfig
from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from ldm_vae.exporting.export import ExportSummary, export
from ldm_vae.images.transforms import to_tensor
from ldm_vae.training.loop import train
from tests.pictures import save_pictures


def train_run(folder: Path, model: ModelConfig) -> Path:
    """Train a tiny model for two updates on six pictures and a broken one; return the run's folder."""
    photos = save_pictures(folder / "photos", count=6, size=(16, 16))
    (folder / "photos" / "broken.png").write_bytes(b"no picture")
    validation = save_pictures(folder / "held_out", count=3, size=(16, 16), first_seed=6)
    config = Config(
        output_dir=str(folder / "run"),
        report_to="none",
        model=model,
        data=DataConfig(train=photos, validation=validation, resolution=16, num_workers=0),
        loss=LossConfig(perceptual="none", disc_weight=0.0),
        train=TrainConfig(batch_size=2, max_train_steps=2, mixed_precision="no", compile="off"),
    )
    train(config)
    return folder / "run"


def export_run(run: Path, output: Path | str, **options: object) -> ExportSummary:
    """Export a run in this process."""
    return export(ExportOptions(run=str(run), output=str(output), num_workers=0, **options))  # type: ignore[arg-type]


def photos_of(run: Path) -> Tensor:
    """The training images that can be read, [6, 3, 16, 16]."""
    paths = sorted((run.parent / "photos").glob("0*.png"))
    return torch.stack([to_tensor(Image.open(path)) for path in paths])


def drawn_samples(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Return 400 samples of each image's posterior."""
    torch.manual_seed(0)
    with torch.no_grad():
        posterior = autoencoder.encode(images).latent_dist
        return torch.cat([posterior.sample() for _ in range(400)]).double()
