"""Alignment of latents with a frozen network's features, and its balance against the reconstruction.

Yao et al. 2025, "Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models", section 3.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.losses.perceptual import unit_channels

RATIO_MAX = 1e8
RATIO_EPSILON = 1e-4


def alignment_loss(projected: Tensor, features: Tensor, *, cosine_margin: float, distance_margin: float) -> Tensor:
    """Return the sum of VA-VAE's two losses, each a mean over images and places: a scalar, free of the resolution.

    mean relu(1 - m1 - cos(p_i, f_i)), the marginal cosine similarity loss (equation 3 there), plus
    mean relu(|cos(p_i, p_j) - cos(f_i, f_j)| - m2) over all pairs of places, the marginal distance matrix similarity
    loss (equation 4).

    Args:
        projected: Latents p, projected to the features' channels, [B, C, h, w].
        features: Features f, [B, C, h, w]; the gradient flows to the latents alone.
        cosine_margin: m1.
        distance_margin: m2.
    """
    ours, theirs = unit_channels(projected).flatten(2), unit_channels(features.detach()).flatten(2)  # [B, C, n]
    cosine = (ours * theirs).sum(1)
    difference = ours.transpose(1, 2) @ ours - theirs.transpose(1, 2) @ theirs  # [B, n, n]
    return F.relu(1 - cosine_margin - cosine).mean() + F.relu(difference.abs() - distance_margin).mean()


class AlignmentBalance:
    """The ratio of two gradients at the encoder's last layer, by which the alignment's weight is multiplied.

    It is that of the global batch, |grad_V R| / (|grad_V alignment| + 1e-4), where V is the layer's weight and R what
    the decoder is trained with. No process has it before an update's end, so each update goes by the one before, and
    the first one has no alignment. The state is part of the checkpoint.

    Args:
        device: Where the state is.
    """

    def __init__(self, *, device: torch.device) -> None:
        self.ratio = torch.zeros((), device=device)

    def update(self, grad_images: Tensor, grad_alignment: Tensor, *, num_elements: int, finite: Tensor) -> None:
        """Measure the ratio in an update's gradients at V, if the update is finite.

        Args:
            grad_images: Of R, over the global batch.
            grad_alignment: Of the alignment, without its weight.
            num_elements: C·H·W of an image. The published R, which the clamp to 1e8 is taken from, is larger by this
                factor.
            finite: [], bool.
        """
        ratio = grad_images.norm() / (grad_alignment.norm() + RATIO_EPSILON)
        self.ratio = torch.where(finite, ratio.clamp(0.0, RATIO_MAX / num_elements), self.ratio)
