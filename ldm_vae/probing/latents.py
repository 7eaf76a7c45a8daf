"""Latents to learn from: encoded on the way into files of the probe, or read from a folder that `encode` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ldm_vae.config.rules import require
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.metrics.latents import LatentMetrics
from ldm_vae.models.families.family import Family
from ldm_vae.models.normalisation import Normalisation

_ROWS = 256


class Moments(Protocol):
    """Posteriors by row."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a latent: c, h, w."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations [n, c, h, w], float32 on the CPU."""


@dataclass(frozen=True, kw_only=True)
class EncodedMoments:
    """Posteriors in two files, of which some rows are there."""

    mean: np.ndarray  # [N, c, h, w] float32
    std: np.ndarray
    rows: np.ndarray
    """Those that could be encoded."""

    @classmethod
    def open(cls, folder: Path, *, name: str, rows: Sequence[int]) -> EncodedMoments:
        """Open the files of an autoencoder."""
        mean, std = (np.load(path, mmap_mode="r") for path in moment_files(folder, name=name))
        return cls(mean=mean, std=std, rows=np.asarray(rows, dtype=np.int64))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a latent: c, h, w."""
        c, h, w = self.mean.shape[1:]
        return c, h, w

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations [n, c, h, w], float32 on the CPU."""
        at = self.rows[np.asarray(rows)]
        return torch.from_numpy(self.mean[at]), torch.from_numpy(self.std[at])


class FolderMoments:
    """The posteriors of a folder of latents; those that it keeps samples or means of have no deviation."""

    def __init__(self, folder: str) -> None:
        self._dataset = LatentDataset(folder, normalize="none")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a latent: c, h, w."""
        return self._dataset.shape(0)

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations [n, c, h, w], float32 on the CPU."""
        stored = [self._dataset.moments(row) for row in rows]
        if "mean" in stored[0]:
            mean, std = (torch.stack([each[name] for each in stored]).float() for name in ("mean", "std"))
            return mean, std
        latents = torch.stack([self._dataset.latents(row) for row in rows])
        return latents, torch.zeros_like(latents)

    def check(self, *, encoder: str, shape: tuple[int, int, int], folder: str) -> None:
        """Raise unless the latents are the autoencoder's, all of one shape.

        Raises:
            ValueError: They are another's, or of other shapes.
        """
        found = self._dataset.index["vae"]["encoder"]
        require(found == encoder, f"<latents> {folder} was encoded by another autoencoder")
        shapes = {self._dataset.shape(rows.start) for rows in self._dataset.shard_rows() if len(rows)}
        require(
            shapes == {shape},
            f"<latents> {folder} holds latents of {sorted(shapes)}; {list(shape)} is what <resolution> gives",
        )


def moment_files(folder: Path, *, name: str) -> tuple[Path, Path]:
    """Return where means and standard deviations of an autoencoder are kept."""
    return folder / f"{name}-mean.npy", folder / f"{name}-std.npy"


@dataclass(frozen=True, kw_only=True)
class TrainingLatents:
    """Posteriors with their normalisation."""

    moments: Moments
    normalisation: Normalisation

    def batch(self, rows: Sequence[int], *, noise: Tensor) -> Tensor:
        """Return normalised samples of posteriors, on the device of `noise` [n, c, h, w]."""
        mean, std = (each.to(noise.device, non_blocking=True) for each in self.moments.read(rows))
        return self.normalisation.to(noise.device).normalise(mean + std * noise)

    @property
    def dimension(self) -> int:
        """Elements of a latent."""
        c, h, w = self.moments.shape
        return c * h * w


def normalised(moments: Moments, family: Family, *, by: str) -> TrainingLatents:
    """Return latents with their normalisation.

    Args:
        moments: The posteriors.
        family: The autoencoder that they are of.
        by: `scaling` for the normalisation of the model's config, `channel` for that which gives samples of the
            posteriors mean 0 and standard deviation 1 a channel.
    """
    if by == "scaling":
        return TrainingLatents(moments=moments, normalisation=family.normalisation)
    metrics = LatentMetrics(latent_channels=moments.shape[0])
    for start in range(0, len(moments), _ROWS):
        mean, std = moments.read(range(start, min(start + _ROWS, len(moments))))
        metrics.update(mean, std.clamp(min=1e-12))  # its KL isn't used
    summary = metrics.compute()
    shift, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (summary.channel_mean, summary.channel_std))
    return TrainingLatents(moments=moments, normalisation=Normalisation(shift=shift, scale=1 / std.clamp(min=1e-6)))
