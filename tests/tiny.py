"""Tiny autoencoders and tiny runs, of the real classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm_vae.config.data import DataConfig
from ldm_vae.config.loss import LossConfig
from ldm_vae.config.model import ModelConfig
from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from ldm_vae.models.build import build_autoencoder
from ldm_vae.models.families.family import Family

MODEL = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
DATA = {"resolution": 32, "num_workers": 0}
LOSS = {"perceptual": "none", "disc_start": 2, "disc_channels": 8, "disc_num_layers": 2}
TRAIN = {"batch_size": 4, "max_train_steps": 6, "learning_rate": 1e-3, "mixed_precision": "no", "ema_decay": 0.9}
EVERY = {"log_steps": 2, "validation_steps": 3, "checkpointing_steps": 3}

Fields = dict[str, Any]


def tiny_config(
    *,
    output_dir: Path | str = "unused",
    model: Fields | None = None,
    data: Fields | None = None,
    loss: Fields | None = None,
    train: Fields | None = None,
    stages: Sequence[dict[str, Fields]] = (),
    **rest: Any,
) -> Config:
    """Return a run of an f2 model of a few thousand weights, in float32, the GAN from step 2 on, without a report.

    Args:
        output_dir: Folder of the run.
        model: Fields of the section, as those below.
        data: Fields.
        loss: Fields.
        train: Fields.
        stages: Fields by section that each stage has of its own.
        rest: Fields of the run.
    """
    sections = {"model": model or {}, "data": data or {}, "loss": loss or {}, "train": train or {}}
    row = [{name: sections[name] | stage.get(name, {}) for name in sections} for stage in stages]
    return Config(
        stages=[tiny_config(output_dir=output_dir, **stage, **rest) for stage in row],
        output_dir=str(output_dir),
        report_to="none",
        model=ModelConfig(**MODEL | (model or {})),
        data=DataConfig(**DATA | (data or {})),
        loss=LossConfig(**LOSS | (loss or {})),
        train=TrainConfig(**TRAIN | EVERY | (train or {})),
        **{"report": False} | rest,
    )


def tiny_autoencoder(
    *, widths: Sequence[int] = (8, 16), attention: Sequence[bool] | None = None, seed: int = 0, **fields: Any
) -> AutoencoderKL:
    """Return a random autoencoder of one level a width, f2 by default, in eval mode and float32.

    Args:
        widths: Channels of each level.
        attention: Which levels have attention; none, by default.
        seed: The weights come from it.
        fields: Other fields of `AutoencoderKL`.
    """
    torch.manual_seed(seed)
    levels = attention or [False] * len(widths)
    return AutoencoderKL(
        **{
            "block_out_channels": tuple(widths),
            "down_block_types": tuple("AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in levels),
            "up_block_types": tuple(
                "AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in reversed(levels)
            ),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            **fields,
        }
    ).eval()


def tiny_family(**fields: Any) -> Family:
    """Return a random f2 autoencoder of a `model` config's fields, in eval mode and float32."""
    torch.manual_seed(0)
    return build_autoencoder(ModelConfig(**MODEL | {"block_out_channels": [8, 16]} | fields)).eval()


def random_images(channels: int = 3, side: int = 32) -> Tensor:
    """Return two images of noise, [2, C, H, W] in [-1, 1], always the same."""
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
