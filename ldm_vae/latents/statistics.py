"""Statistics of latents a channel, in float64, exact when merged over shards; and what storing them rounded off."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(kw_only=True)
class ChannelMoments:
    """Count, mean and sum of squared deviations of each channel, which merge without loss (Chan, Golub and LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979)."""

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
        if latents.numel() == 0:
            return cls()
        values = latents.to(torch.float64).transpose(0, 1).flatten(1)  # [c, n·h·w]
        mean = values.mean(dim=1)
        deviation = (values - mean[:, None]).square().sum(dim=1)
        variance = None
        if std is not None:
            variance = std.to(torch.float64).square().sum(dim=(0, 2, 3)).tolist()
        return cls(
            count=values.shape[1], mean=mean.tolist(), deviation=deviation.tolist(), posterior_variance=variance
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
        """Mean and standard deviation (over n) a channel; with moments, those of posterior samples too."""
        result: dict[str, object] = {"count": self.count, "mean": self.mean, "std": self._std(self.deviation)}
        if self.posterior_variance is not None:
            total = [a + b for a, b in zip(self.deviation, self.posterior_variance, strict=True)]
            result["sample_std"] = self._std(total)
        return result

    def _std(self, deviation: list[float]) -> list[float]:
        return [math.sqrt(value / self.count) for value in deviation]


@dataclass(kw_only=True)
class Rounding:
    """What storing values in fewer bits changed."""

    squared_error: float = 0.0
    squared: float = 0.0
    """Sum of the values' squares."""
    largest: float = 0.0
    """Largest absolute error."""

    @classmethod
    def of(cls, values: Tensor, *, stored: Tensor) -> Rounding:
        if values.numel() == 0:
            return cls()
        exact = values.to(torch.float64)
        error = stored.to(torch.float64) - exact
        return cls(
            squared_error=error.square().sum().item(),
            squared=exact.square().sum().item(),
            largest=error.abs().max().item(),
        )

    def merge(self, other: Rounding) -> Rounding:
        return Rounding(
            squared_error=self.squared_error + other.squared_error,
            squared=self.squared + other.squared,
            largest=max(self.largest, other.largest),
        )

    def summary(self) -> dict[str, float]:
        """The relative error (root of summed squares over root of summed squares) and the largest absolute one."""
        relative = math.sqrt(self.squared_error / self.squared) if self.squared > 0 else 0.0
        return {"relative": relative, "largest": self.largest}
