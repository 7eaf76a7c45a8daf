"""Synthetic sounds, files of them, and a tiny run on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ldm_vae.config.run import Config
from tests.tiny import tiny_config

FRAMES = 32


def chirp(seconds: float = 1.0, *, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Return a sound with overtones that rises and fades again and again, with some noise, [N] float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(150, 400)
    sound = sum(np.sin(2 * np.pi * n * pitch * (time + 0.2 * time**2)) / n for n in (1, 2, 3, 5))
    sound = sound * np.exp(-3 * (time % 0.4)) + 0.02 * rng.standard_normal(len(time))
    return (0.4 * sound).astype(np.float32)


def write_sounds(folder: Path, *, count: int = 6, seconds: float = 1.0, rate: int = 16_000) -> Path:
    """Write sounds that differ, as WAV files of 16 bits; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        soundfile.write(folder / f"{seed}.wav", chirp(seconds, rate=rate, seed=seed), rate)
    return folder


def sound_config(output_dir: Path, sounds: Path, **train: Any) -> Config:
    """Return a tiny run of six steps on parts of 0.32 s, smooth functions and the GAN included."""
    return tiny_config(
        output_dir=output_dir,
        model={"in_channels": 1, "latent_channels": 3},
        data={"train": str(sounds), "validation": str(sounds), "mel_frames": FRAMES, "flip": False},
        loss={"perceptual": "efficientnet_lite0", "kl_weight": 0.03, "reconstruction": "l2"},
        train={"adam_epsilon": 1e-4, "validation_steps": 2, "checkpointing_steps": 2, **train},
    )
