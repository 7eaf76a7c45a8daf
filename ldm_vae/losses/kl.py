"""KL divergence of the posterior from the standard normal."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)) of each image, summed over the latent.

    The formula is that of Kingma & Welling 2014, appendix B.

    Args:
        mean: The posterior's mean, [B, c, h, w].
        logvar: Its log-variance, of the same shape.

    Returns:
        [B], in nats.
    """
    return 0.5 * (mean.square() + torch.exp(logvar) - 1 - logvar).flatten(1).sum(1)
