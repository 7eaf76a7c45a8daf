"""The rate of a Gaussian posterior: its statistics over the global batch, and what bounds it from below."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.losses.term import Schedule
from ldm_vae.system.float64 import in_float64


def posterior_moments(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return what a channel's statistics follow from, so that parts of a batch can be averaged.

    Args:
        mean: The posterior's mean, [B, c, h, w].
        logvar: Its log-variance, of the same shape.

    Returns:
        [4, c], means over images and positions of mean, mean², variance and log-variance.
    """
    return torch.stack([each.mean(dim=(0, 2, 3)) for each in (mean, mean.square(), torch.exp(logvar), logvar)])


def channel_kl(moments: Tensor) -> Tensor:
    """Return each channel's KL divergence from N(0, 1), [c], in nats an element, from moments [4, c]."""
    _, square, variance, logvar = moments
    return 0.5 * (square + variance - 1 - logvar)


@dataclass(frozen=True, kw_only=True)
class PosteriorSummary:
    """What of the images the latents carry."""

    kl_per_channel: list[float]
    """KL divergence from N(0, 1), in nats an element."""
    active_channels: int
    """Channels whose mean varies over images and positions (Burda et al. 2016, section 4.3)."""
    mutual_information: float
    """Nats an element that latents and images have in common, at most.

    E KL(q(z given x) || p) - KL(q(z) || p), of Hoffman & Johnson 2016, with a Gaussian of the same mean and variance
    for each channel's q(z), of which none of the same moments has less divergence from p.
    """


def summarise_posterior(moments: Tensor, *, least_variance: float) -> PosteriorSummary | None:
    """Return the summary of moments [4, c], waiting for the device; None where they aren't finite.

    Args:
        moments: As `posterior_moments` returns them, over the global batch.
        least_variance: Variance of its mean above which a channel is active.
    """
    moments = in_float64(moments).cpu()
    if not moments.isfinite().all():
        return None
    mean, square, variance, logvar = moments
    of_mean = (square - mean.square()).clamp(min=0)
    shared = 0.5 * (torch.log(variance + of_mean) - logvar)
    return PosteriorSummary(
        kl_per_channel=channel_kl(moments).tolist(),
        active_channels=int((of_mean > least_variance).sum()),
        mutual_information=shared.mean().item(),
    )


class RateControl:
    """Which channels' KL divergence the next update lowers, raises or leaves alone.

    Both forms look at the global batch, which no process has before an update's end. So each update goes by the
    divergences of the one before, as it does by the adaptive weight; the first one lowers all. The state is part of
    the checkpoint, and the same for any number of processes and any cut of the batch.

    - Free bits (Kingma et al. 2016, section 2.4): sum over channels of max(bits, KL). A channel below is left alone.
    - Controlled capacity (Burgess et al. 2018, equation 8): |KL - C|. Below C, the divergence is raised.

    Args:
        free_bits: Nats an element of a channel that cost nothing; 0: none.
        capacity: Nats an element of the latent that KL is to have; None: it is to be small.
        channels: Latent channels.
        device: Where the state is.
    """

    def __init__(
        self, *, free_bits: float, capacity: float | Schedule | None, channels: int, device: torch.device
    ) -> None:
        assert free_bits == 0 or capacity is None
        self._free_bits = free_bits
        self._capacity = capacity
        self.gates = torch.ones(channels, device=device)
        """Factors of the channels' divergences in the next update: 1, 0 or -1."""

    @property
    def is_used(self) -> bool:
        """Whether the factors are ever other than 1."""
        return self._free_bits > 0 or self._capacity is not None

    def update(self, kl: Tensor, *, step: int, finite: Tensor) -> None:
        """Set the factors of the update after `step` ones, by the divergences [c] before it in nats an element."""
        if self._capacity is not None:
            wanted = self._capacity.at(step) if isinstance(self._capacity, Schedule) else self._capacity
            gates = torch.sign(kl.mean() - wanted).expand_as(kl)
        else:
            gates = (kl > self._free_bits).to(kl.dtype)
        self.gates = torch.where(finite, gates, self.gates)

    def gated(self, kl: Tensor, per_channel: Tensor) -> Tensor:
        """Return a divergence with its own value, and with the gradient of the channels' parts times the factors.

        Args:
            kl: [], the divergence.
            per_channel: [c], parts of which it is the sum.
        """
        used = (self.gates * per_channel).sum()
        return kl.detach() + used - used.detach()
