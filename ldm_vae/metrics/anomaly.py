"""Scores of single pictures for anomaly detection, their thresholds, and how well they tell anomalies apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from ldm_vae.system.float64 import in_float64

DEQUANTISATION = 1 / 12
"""Variance, in squared levels, of the uniform noise that makes whole levels continuous."""


def error_map(levels: Tensor, reconstructed: Tensor) -> Tensor:
    """Return each pixel's squared error in squared levels, the mean over channels: from [B, C, H, W] to [B, H, W]."""
    return (levels - reconstructed).square().mean(dim=1)


def window_peak(maps: Tensor, *, window: int) -> Tensor:
    """Return the largest mean of any square window of maps [B, H, W]: [B].

    The windows lie wholly inside. A side that is shorter than `window` pixels is taken whole.
    """
    size = tuple(min(window, side) for side in maps.shape[-2:])
    means = nn.functional.avg_pool2d(maps[:, None], kernel_size=size, stride=1)
    return means.flatten(1).amax(dim=1)


def gaussian_bits(squared_error: Tensor, *, variance: float) -> Tensor:
    """Return -E log2 p(x + u | z), in bits an element, of 8-bit pictures x under a Gaussian about what z decodes to.

    u is uniform noise of one level, u ~ U(-1/2, 1/2), with which E (x + u - y)² = (x - y)² + 1/12. The expectation
    over it is no less than the bits -log2 P(x | z) of the discrete picture (Theis et al. 2016, "A note on the
    evaluation of generative models"), so figures can be compared with a lossless compressor's.

    Args:
        squared_error: Mean squared errors of elements, in squared levels.
        variance: Of the Gaussian, in squared levels.
    """
    constant = 0.5 * math.log2(2 * math.pi * variance)
    return constant + (in_float64(squared_error) + DEQUANTISATION) / (2 * math.log(2) * variance)


def calibrated_variance(squared_error: Tensor) -> float:
    """Return the variance under which `gaussian_bits` is least on average, in squared levels; at least 1/12.

    Setting the derivative to zero gives the mean squared error (Rybkin et al. 2021, "Simple and effective VAE training
    with calibrated decoders"), here with that of the dequantisation.

    Args:
        squared_error: Each picture's mean over its elements, [n]; pictures count alike, whatever their size.
    """
    return in_float64(squared_error).mean().item() + DEQUANTISATION


def threshold(scores: Tensor, *, quantile: float) -> float:
    """Return the quantile of scores [n], linear between two of them; NaN where one of them is NaN."""
    return torch.quantile(in_float64(scores), quantile).item()


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score tells anomalies from normal pictures."""

    auroc: float
    """Area under the receiver operating characteristic: how often an anomaly scores above a normal picture, ties as
    half; 0.5 by chance."""
    auprc: float
    """Area under the precision-recall curve, as average precision; by chance it is the part of anomalies."""


def detection(scores: Tensor, is_anomaly: Tensor) -> Detection | None:
    """Return how well scores [n] tell anomalies apart; None unless there are anomalies, normal pictures, and numbers.

    torchmetrics takes scores outside of [0, 1] for logits and squashes them, where large ones become equal; so it is
    given their ranks, of which both areas are functions.

    Args:
        scores: The higher, the more unlike normal; NaN is left out.
        is_anomaly: [n], bool.
    """
    finite = ~scores.isnan()
    scores, is_anomaly = scores[finite], is_anomaly[finite]
    if not is_anomaly.any() or is_anomaly.all():
        return None
    _, ranks = torch.unique(scores, return_inverse=True)
    placed, target = in_float64(ranks) / len(scores), is_anomaly.long()
    return Detection(auroc=binary_auroc(placed, target).item(), auprc=binary_average_precision(placed, target).item())
