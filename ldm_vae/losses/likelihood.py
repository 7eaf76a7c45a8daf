"""Likelihoods of 8-bit pictures: how a pixel's value is distributed about the reconstruction.

A value of level k, of 0 to 255, is k / 127.5 - 1, so levels are 2/255 apart. Gaussian and Laplace are densities. They
are those of the dequantised value: the level with uniform noise of its own width, whose mean log-density is a lower
bound on the log-probability of the level (Theis et al. 2016, "A note on the evaluation of generative models", section
3.1). All log-likelihoods here are per level, that of a density being log p + log(2/255), so that the three kinds
compare, and -log of one is nats a dimension of pictures of 256 levels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.system.pixels import LEVELS_PER_UNIT

LikelihoodKind = Literal["gaussian", "laplace", "logistic"]

_HALF = 0.5 / LEVELS_PER_UNIT
"""Half the distance of two levels."""


def negative_log_likelihood(images: Tensor, reconstruction: Tensor, logvar: Tensor, *, kind: LikelihoodKind) -> Tensor:
    """Return the mean over all elements, in nats a dimension of pictures of 256 levels.

    Of densities it is the mean over the noise of dequantisation u as well, in closed form: E (d + u)² is d² + h² / 3,
    and E |d + u| is (d² + h²) / 2h where |d| is below h, and |d| elsewhere, with u uniform in [-h, h].

    Args:
        images: Levels, [B, C, H, W] in [-1, 1].
        reconstruction: Where the distributions are centred, of the same shape.
        logvar: Log-variance of the distributions, a scalar.
        kind: The distribution. `logistic` is discretised: the outermost levels have all that lies beyond.
    """
    if kind == "logistic":
        return -_log_mass(images, reconstruction, logvar).mean()
    difference = images - reconstruction
    if kind == "gaussian":
        distance = difference.square() + _HALF**2 / 3
    else:
        distance = difference.abs()
        distance = torch.where(distance < _HALF, (difference.square() + _HALF**2) / (2 * _HALF), distance)
    return -_log_density(distance, logvar, kind=kind).mean()


def log_likelihood(values: Tensor, reconstruction: Tensor, logvar: Tensor, *, kind: LikelihoodKind) -> Tensor:
    """Return the log-likelihood of each element, in nats, as the module says.

    Args:
        values: Of a density the dequantised values, of `logistic` the levels, in [-1, 1].
        reconstruction: Where the distributions are centred; shapes are broadcast.
        logvar: Log-variance of the distributions, a scalar.
        kind: The distribution.
    """
    if kind == "logistic":
        return _log_mass(values, reconstruction, logvar)
    difference = values - reconstruction
    return _log_density(difference.square() if kind == "gaussian" else difference.abs(), logvar, kind=kind)


def _log_density(distance: Tensor, logvar: Tensor, *, kind: Literal["gaussian", "laplace"]) -> Tensor:
    """Return the log-density per level, of squared (gaussian) or absolute (laplace) distances."""
    if kind == "gaussian":
        return -0.5 * (distance * torch.exp(-logvar) + logvar + math.log(2 * math.pi)) - math.log(LEVELS_PER_UNIT)
    log_scale = 0.5 * (logvar - math.log(2))  # the variance is 2 scale²
    return -distance * torch.exp(-log_scale) - log_scale - math.log(2) - math.log(LEVELS_PER_UNIT)


def _log_mass(levels: Tensor, reconstruction: Tensor, logvar: Tensor) -> Tensor:
    """Return the log-probability of levels (Salimans et al. 2017, "PixelCNN++", equation 2).

    With the logistic function S, S(a) - S(b) is S(a) S(-b) (1 - exp(b - a)), of which no difference cancels.
    """
    scale = torch.exp(0.5 * logvar) * (math.sqrt(3) / math.pi)  # the variance is (pi scale)² / 3
    above = (levels + _HALF - reconstruction) / scale
    below = (levels - _HALF - reconstruction) / scale
    log_mass = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-2 * _HALF / scale))
    log_mass = torch.where(levels < -1 + _HALF, F.logsigmoid(above), log_mass)
    return torch.where(levels > 1 - _HALF, F.logsigmoid(-below), log_mass)
