"""Adversarial losses, and their balance against the reconstruction (Esser et al. 2021, equation 7)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

ADAPTIVE_WEIGHT_MAX = 1e4
ADAPTIVE_WEIGHT_EPSILON = 1e-4


def generator_loss(logits_fake: Tensor) -> Tensor:
    """Return -mean D(y), for hinge and vanilla alike, as published.

    Args:
        logits_fake: D(y) of a micro-batch's reconstructions, of any shape.
    """
    return -logits_fake.mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, *, kind: Literal["hinge", "vanilla"]) -> Tensor:
    """Return half the sum of the mean loss of the real images and that of the reconstructions.

    Args:
        logits_real: D(x), of any shape.
        logits_fake: D(y), of the same shape.
        kind: `hinge` (Lim & Ye 2017) or `vanilla`, the cross-entropy of Goodfellow et al. 2014.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def adaptive_weight(grad_reconstruction: Tensor, grad_generator: Tensor, *, num_elements: int) -> Tensor:
    """Return |grad_W rec| / (|grad_W g| + 1e-4), clamped so that its product with `num_elements` lies in [0, 1e4].

    Args:
        grad_reconstruction: Gradient of the terms on images at the last layer's weight W, over the global batch.
        grad_generator: Gradient of the adversarial loss g there.
        num_elements: C·H·W of an image. The published losses, which the clamp is taken from, are larger by this
            factor.
    """
    ratio = grad_reconstruction.norm() / (grad_generator.norm() + ADAPTIVE_WEIGHT_EPSILON)
    return ratio.clamp(0.0, ADAPTIVE_WEIGHT_MAX / num_elements)
