"""Adversarial losses, what regularises D, and the balance with the reconstruction (Esser et al. 2021, equation 7)."""

from __future__ import annotations

from typing import Literal

import torch
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


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return the mean over images of |grad_x sum D(x)|² over the number of logits, with a graph for its own gradient.

    With one logit an image it is that of R1 (Mescheder et al. 2018, "Which Training Methods for GANs do actually
    Converge?", equation 9) without its factor of a half. With many it is the mean of each logit's squared gradient, as
    far as their patches don't overlap, and doesn't grow with the resolution.

    Args:
        logits: D(x), [B, 1, h, w], part of the graph.
        images: x, [B, C, H, W], which require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean() / logits[0].numel()


class LogitAnchors:
    """Averages of D's logits over past updates, and the distance of an update's logits from them.

    mean relu(D(x) - average of D(y))² + mean relu(average of D(x) - D(y))²: the LeCam regulariser (Tseng et al. 2021,
    "Regularizing Generative Adversarial Networks under Limited Data"), one-sided as in its authors' code.
    The averages are those of the global batches of past updates: the first update with D has none, and no penalty. So
    each process and each micro-batch adds its part. The state is part of the checkpoint.

    Args:
        decay: Part of the averages that an update keeps.
        device: Where the state is.
    """

    def __init__(self, *, decay: float, device: torch.device) -> None:
        self._decay = decay
        self.state = torch.zeros(3, device=device)
        """Averages of D(x) and of D(y), and 1 once there are any."""

    def penalty(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Return the mean penalty of a micro-batch's logits, of any shape: a scalar."""
        real, fake, begun = self.state
        distance = F.relu(logits_real - fake).square().mean() + F.relu(real - logits_fake).square().mean()
        return begun * distance

    def update(self, logits_real: Tensor, logits_fake: Tensor, *, finite: Tensor) -> None:
        """Move the averages towards an update's mean logits, scalars of the global batch, if the update is finite."""
        now = torch.stack([logits_real, logits_fake, torch.ones_like(logits_real)])
        moved = torch.where(self.state[2] > 0, torch.lerp(now, self.state, self._decay), now)
        self.state = torch.where(finite, moved, self.state)


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
