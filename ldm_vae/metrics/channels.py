"""How latent channels go together, and how much the latents can tell of a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_vae.system.float64 import in_float64


def outer_products(latents: Tensor) -> Tensor:
    """Return the sum over images and positions of each position's products of channels, [c, c] float64."""
    rows = in_float64(latents).movedim(1, -1).flatten(0, -2)
    return rows.T @ rows


def mean_correlation(covariance: Tensor) -> float:
    """Return the mean absolute correlation between two different channels of a covariance [c, c]; 0 for one channel.

    Channels that don't vary correlate with none.
    """
    num_channels = len(covariance)
    if num_channels == 1:
        return 0.0
    std = covariance.diagonal().clamp(min=0).sqrt()
    correlation = (covariance / (std[:, None] * std[None])).nan_to_num(0.0, 0.0, 0.0)
    correlation.fill_diagonal_(0)
    return (correlation.abs().sum() / (num_channels * (num_channels - 1))).item()


def effective_channels(covariance: Tensor) -> float:
    """Return how many equal and independent channels would have the same entropy.

    It is exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli 2007, "The effective rank").
    """
    share = torch.linalg.eigvalsh(covariance).clamp(min=0)
    share = share / share.sum()
    return math.exp(-(share * share.clamp(min=1e-300).log()).sum().item())


def information_bound(covariance: Tensor, *, mean_log_std: Tensor) -> float:
    """Return an upper bound in nats of what one position of the latent tells of the picture.

    I(x; z) = h(z) - h(z | x) (Hoffman & Johnson 2016, "ELBO surgery", whose mutual information of the index-code
    pair this is). h(z) is at most that of a Gaussian with the same covariance between channels, log det(2 pi e C) / 2;
    h(z | x) is the posterior's, the sum over channels of E log(std) + log(2 pi e) / 2. Taken a position, it counts
    what neighbouring positions share again for each of them. Infinite where a posterior is no distribution.

    Args:
        covariance: Of the sampled latents, [c, c].
        mean_log_std: Mean of the logarithm of the posterior's standard deviation, [c].
    """
    _, log_determinant = torch.linalg.slogdet(covariance)
    return (log_determinant / 2 - mean_log_std.sum()).item()
