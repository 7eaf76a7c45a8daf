"""What is minimised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.names import AdaptiveWeight, DiscriminatorLoss, DiscriminatorNorm, Perceptual, PixelDistance
from ldm_vae.config.rules import require


@dataclass(kw_only=True)
class LossConfig:
    """The objective: the published kl-f8 loss divided by the image's number of elements."""

    reconstruction: PixelDistance = "l1"
    """Pixel distance, averaged over all elements."""
    perceptual: Perceptual = "lpips_vgg"
    """Network of the perceptual distance; `efficientnet_lite0` needs no download."""
    perceptual_weights: Optional[str] = None
    """Local file with the LPIPS trunk's weights; none: torch's usual cache, then a download."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance beside the pixel distance."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence a pixel element."""
    learn_logvar: bool = False
    """Learn a log-variance s of the reconstruction: rec / exp(s) + s."""
    logvar_init: float = 0.0
    """Start of s."""
    disc_weight: float = 0.5
    """Weight of the adversarial loss, before the adaptive one; 0: no discriminator."""
    disc_start: int = 50001
    """First generator update in which the discriminator is trained."""
    disc_warmup_steps: int = 0
    """Updates that the discriminator is trained for, from `disc_start` on, before it reaches the generator."""
    disc_loss: DiscriminatorLoss = "hinge"
    """Loss of the discriminator."""
    disc_norm: DiscriminatorNorm = "group"
    """Norm of the discriminator; `batch` is the published one, and depends on how the batch is cut."""
    disc_channels: int = 64
    """Width of the discriminator's first layer."""
    disc_num_layers: int = 3
    """Strided layers of the discriminator; 3 judges patches of 70 pixels."""
    adaptive_weight: AdaptiveWeight = "lagged"
    """Balance of the adversarial gradient against the reconstruction's at the last layer: measured in the step before,
    in the same step (the published order, without accumulation only), or not at all."""

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "kl_weight", "disc_weight", "disc_start", "disc_warmup_steps"):
            require(getattr(self, name) >= 0, f"loss.{name} is {getattr(self, name)}; it can't be negative")
        for name in ("disc_channels", "disc_num_layers"):
            require(getattr(self, name) > 0, f"loss.{name} is {getattr(self, name)}; it must be positive")
