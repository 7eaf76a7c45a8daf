"""What the latents of a data set look like: statistics of the posteriors, from which those of samples follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.metrics.sums import Sums
from ldm_vae.system.float64 import in_float64

ACTIVE_VARIANCE = 0.01
"""A latent channel is active where the posterior mean's variance over the data exceeds this (Burda et al. 2016,
"Importance Weighted Autoencoders", section 4.3). The prior's variance is 1: below it the channel carries no more than
the prior, so the decoder learns nothing of the image from it."""


@dataclass(frozen=True, kw_only=True)
class LatentSummary:
    """Statistics of the latents z ~ N(mean, std^2) over a data set; a list holds one number a channel."""

    num_images: int
    num_positions: int
    """Latent pixels, over all images."""
    mean: float
    """Mean of all elements."""
    std: float
    """Standard deviation of all elements about their common mean."""
    channel_mean: list[float]
    channel_std: list[float]
    channel_kl: list[float] | None
    """KL divergence from N(0, 1), in nats a latent element; None where latents have no posterior."""
    channel_mean_variance: list[float]
    """Variance of the posterior's mean over images and positions."""

    @property
    def scaling_factor(self) -> float:
        """Return 1/std: z * scaling_factor (or (z - mean) * scaling_factor) has unit standard deviation."""
        return 1 / self.std

    @property
    def active_channels(self) -> int:
        """Return how many channels' `channel_mean_variance` exceeds `ACTIVE_VARIANCE`."""
        return sum(variance > ACTIVE_VARIANCE for variance in self.channel_mean_variance)


class LatentMetrics:
    """Sums of posterior moments, from which the statistics of samples follow without drawing any.

    Var z = E[mean^2 + std^2] - (E mean)^2, the law of total variance. Latents without a posterior are their own means.

    Args:
        latent_channels: Channels of the latents.
        device: Where the sums are kept.
    """

    def __init__(self, *, latent_channels: int, device: torch.device | str = "cpu") -> None:
        vectors = ("mean", "mean_square", "variance", "kl")
        sizes = {"images": 1, "posteriors": 1, "positions": 1, **dict.fromkeys(vectors, latent_channels)}
        self._sums = Sums(sizes, device=device)

    @torch.no_grad()
    def update(self, mean: Tensor, std: Tensor | None) -> Tensor | None:
        """Add the posteriors of a batch, or its latents.

        Args:
            mean: Posterior means [B, c, h, w], or the latents themselves.
            std: Posterior standard deviations [B, c, h, w], positive; None where nothing is random.

        Returns:
            Each posterior's KL divergence from N(0, 1), [B] float64, in nats; None without a posterior.
        """
        mean = in_float64(mean)
        batch, _, height, width = mean.shape
        self._sums.add("images", torch.tensor(batch))
        self._sums.add("positions", torch.tensor(batch * height * width))
        moments, kl = {"mean": mean, "mean_square": mean.square()}, None
        if std is not None:
            std = in_float64(std)
            kl = (mean.square() + std.square() - 1) / 2 - std.log()
            moments |= {"variance": std.square(), "kl": kl}
            self._sums.add("posteriors", torch.tensor(batch))
        for name, moment in moments.items():
            self._sums.add(name, moment.sum(dim=(0, 2, 3)))
        return None if kl is None else kl.sum(dim=(1, 2, 3))

    def state(self) -> dict[str, Tensor]:
        """Return all sums by name: add up those of all processes and `load_state` the totals."""
        return self._sums.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all sums by those of `state`."""
        self._sums.load_state(state)

    def compute(self) -> LatentSummary:
        """Return the statistics of all that was added.

        Raises:
            ValueError: Nothing was added.
        """
        num_images, num_positions = int(self._sums["images"]), int(self._sums["positions"])
        if num_images == 0:
            raise ValueError("no images to measure latents on: every one was unreadable, or there were none")
        mean, mean_square, variance, kl = (
            self._sums[name] / num_positions for name in ("mean", "mean_square", "variance", "kl")
        )
        channel_variance = mean_square + variance - mean.square()
        pooled_variance = (mean_square + variance).mean() - mean.mean().square()
        return LatentSummary(
            num_images=num_images,
            num_positions=num_positions,
            mean=mean.mean().item(),
            std=pooled_variance.sqrt().item(),
            channel_mean=mean.tolist(),
            channel_std=channel_variance.sqrt().tolist(),
            channel_kl=kl.tolist() if int(self._sums["posteriors"]) else None,
            channel_mean_variance=(mean_square - mean.square()).clamp(min=0).tolist(),
        )
