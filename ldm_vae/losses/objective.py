"""The objective of the autoencoder: the published kl-f8 loss (Rombach et al. 2022, appendix G) divided by the number
of elements of an image, so that its weights carry over and nothing grows with the resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ldm_vae.losses.adversarial import adaptive_weight
from ldm_vae.losses.kl import kl_divergence
from ldm_vae.losses.reconstruction import pixel_distance


@dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """Scalars of one micro-batch."""

    total: Tensor  # rec, or rec / exp(s) + s with a learnt log-variance
    pixel: Tensor
    perceptual: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """rec + kl_weight · kl + lam · g; see the project's design for the notation."""

    perceptual_network: nn.Module | None
    reconstruction: Literal["l1", "l2"] = "l1"
    perceptual_weight: float = 1.0
    kl_weight: float = 1e-6
    disc_weight: float = 0.5
    disc_loss: Literal["hinge", "vanilla"] = "hinge"
    learn_logvar: bool = False

    def reconstruction_loss(self, images: Tensor, reconstruction: Tensor, log_variance: Tensor) -> ReconstructionLoss:
        """Pixel and perceptual distance of [B, C, H, W] in [-1, 1]; `log_variance` is the scalar s."""
        pixel = pixel_distance(images, reconstruction, kind=self.reconstruction)
        if self.perceptual_network is None:
            perceptual = torch.zeros_like(pixel)
        else:
            perceptual = self.perceptual_network(images, reconstruction).mean()
        total = pixel + self.perceptual_weight * perceptual
        if self.learn_logvar:
            total = total / torch.exp(log_variance) + log_variance
        return ReconstructionLoss(total=total, pixel=pixel, perceptual=perceptual)

    def kl_loss(self, mean: Tensor, logvar: Tensor, *, num_elements: int) -> Tensor:
        """Mean KL divergence of an image, divided by its number of elements (unweighted scalar)."""
        return kl_divergence(mean, logvar).mean() / num_elements

    def generator_weight(self, grad_reconstruction: Tensor, grad_generator: Tensor, *, num_elements: int) -> Tensor:
        """lam, from the global batch's gradients at the last layer's weight."""
        return self.disc_weight * adaptive_weight(grad_reconstruction, grad_generator, num_elements=num_elements)
