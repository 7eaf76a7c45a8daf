"""Statistics of latents a channel, in float64; and what storing latents in fewer bits rounded off.

Both are measured row by row on the CPU and put together from the rows of a whole shard, in their order. So they don't
depend on the batches in which the latents were encoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ldm_vae.system.float64 import in_float64


@dataclass(frozen=True, kw_only=True)
class RowMoments:
    """Moments of each row of a batch of latents [n, c, h, w]."""

    positions: int
    """Elements of each row and channel, h·w."""
    mean: np.ndarray  # [n, c], float64
    deviation: np.ndarray  # [n, c]: sum of the squared deviations from the row's mean
    posterior_variance: np.ndarray | None  # [n, c]: sum of the posterior's variances, for moments

    @classmethod
    def of(cls, latents: Tensor, *, std: Tensor | None = None) -> RowMoments:
        """Measure latents, or posterior means [n, c, h, w] with their standard deviations."""
        values = _rows(latents, flat=2)
        mean = values.mean(axis=2)
        return cls(
            positions=values.shape[2],
            mean=mean,
            deviation=np.square(values - mean[:, :, None]).sum(axis=2),
            posterior_variance=None if std is None else np.square(_rows(std, flat=2)).sum(axis=2),
        )


@dataclass(kw_only=True)
class ChannelMoments:
    """Count, mean and sum of squared deviations of each channel, which merge without loss.

    From Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    count: int = 0
    """Elements of each channel."""
    mean: list[float] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)
    """Sum of the squared deviations from the mean."""
    posterior_variance: list[float] | None = None
    """Sum of the posterior's variances (mode moments): what sampling adds to the deviation."""

    @classmethod
    def of(cls, latents: Tensor, *, std: Tensor | None = None) -> ChannelMoments:
        """Measure latents [n, c, h, w], or posterior means with their standard deviations."""
        return cls.of_rows([RowMoments.of(latents, std=std)])

    @classmethod
    def of_rows(cls, batches: Iterable[RowMoments]) -> ChannelMoments:
        """Return the moments of all rows together; all have the same number of positions."""
        batches = [batch for batch in batches if len(batch.mean)]
        if not batches:
            return cls()
        means = np.concatenate([batch.mean for batch in batches])  # [n, c]
        mean = means.mean(axis=0)
        positions = batches[0].positions
        between = positions * np.square(means - mean).sum(axis=0)
        within = np.concatenate([batch.deviation for batch in batches]).sum(axis=0)
        variances = [batch.posterior_variance for batch in batches if batch.posterior_variance is not None]
        return cls(
            count=len(means) * positions,
            mean=mean.tolist(),
            deviation=(within + between).tolist(),
            posterior_variance=np.concatenate(variances).sum(axis=0).tolist() if variances else None,
        )

    def merge(self, other: ChannelMoments) -> ChannelMoments:
        """Return the moments of both parts together."""
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        count = self.count + other.count
        shift = [b - a for a, b in zip(self.mean, other.mean, strict=True)]
        spread = self.count * other.count / count
        added = zip(self.deviation, other.deviation, shift, strict=True)
        variance = None
        if self.posterior_variance is not None and other.posterior_variance is not None:
            variance = [a + b for a, b in zip(self.posterior_variance, other.posterior_variance, strict=True)]
        return ChannelMoments(
            count=count,
            mean=[a + d * other.count / count for a, d in zip(self.mean, shift, strict=True)],
            deviation=[a + b + d * d * spread for a, b, d in added],
            posterior_variance=variance,
        )

    def statistics(self) -> dict[str, object]:
        """Return mean and standard deviation (over n) a channel; with moments, those of posterior samples too."""
        result: dict[str, object] = {"count": self.count, "mean": self.mean, "std": self._std(self.deviation)}
        if self.posterior_variance is not None:
            total = [a + b for a, b in zip(self.deviation, self.posterior_variance, strict=True)]
            result["sample_std"] = self._std(total)
        return result

    def _std(self, deviation: list[float]) -> list[float]:
        return [math.sqrt(value / self.count) for value in deviation]


@dataclass(frozen=True, kw_only=True)
class RowRounding:
    """What storing each row of a batch in fewer bits changed."""

    squared_error: np.ndarray  # [n], float64
    squared: np.ndarray  # [n]: sum of the values' squares
    largest: np.ndarray  # [n]: largest absolute error

    @classmethod
    def of(cls, values: Tensor, *, stored: Tensor) -> RowRounding:
        """Compare values [n, ...] with what is stored of them."""
        exact = _rows(values, flat=1)
        error = _rows(stored, flat=1) - exact
        return cls(
            squared_error=np.square(error).sum(axis=1),
            squared=np.square(exact).sum(axis=1),
            largest=np.abs(error).max(axis=1, initial=0.0),
        )


@dataclass(kw_only=True)
class Rounding:
    """What storing values in fewer bits changed."""

    squared_error: float = 0.0
    squared: float = 0.0
    """Sum of the values' squares."""
    largest: float = 0.0
    """Largest absolute error."""

    @classmethod
    def of_rows(cls, batches: Iterable[RowRounding]) -> Rounding:
        """Return what was changed of all rows together."""
        batches = [batch for batch in batches if len(batch.squared)]
        if not batches:
            return cls()
        return cls(
            squared_error=float(np.concatenate([batch.squared_error for batch in batches]).sum()),
            squared=float(np.concatenate([batch.squared for batch in batches]).sum()),
            largest=float(np.concatenate([batch.largest for batch in batches]).max()),
        )

    def merge(self, other: Rounding) -> Rounding:
        """Return what was changed of both parts together."""
        return Rounding(
            squared_error=self.squared_error + other.squared_error,
            squared=self.squared + other.squared,
            largest=max(self.largest, other.largest),
        )

    def summary(self) -> dict[str, float]:
        """Return the relative error (root of summed squares over root of summed squares) and the largest absolute."""
        relative = math.sqrt(self.squared_error / self.squared) if self.squared > 0 else 0.0
        return {"relative": relative, "largest": self.largest}


def _rows(values: Tensor, *, flat: int) -> np.ndarray:
    """Return values on the CPU in float64, with the dimensions from `flat` on as one.

    NumPy sums each row by itself, on one thread, so a row's sums don't depend on the rows beside it.
    """
    return in_float64(values.cpu()).flatten(flat).contiguous().numpy()
