"""The published training step, written plainly: what bench_train.py measures ours beside.

It follows the kl-f8 trainer as it was published (Rombach et al. 2022; the loss LPIPSWithDiscriminator of Esser et al.
2021): each optimizer has its turn, and in it the autoencoder, the perceptual network and the discriminator run anew.
What the published trainer doesn't do, such as clipping or an average of the weights, isn't done here either.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldm_vae.config.run import Config
from ldm_vae.models.discriminators.patch import PatchDiscriminator
from ldm_vae.models.precision import autocast


class ReferenceStep:
    """One update of generator and discriminator, NCHW, on one device.

    Args:
        perceptual: Called as `perceptual(images, reconstruction)`, it returns a distance for each image; or None.
        bf16: Run each turn's forward under autocast.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        config: Config,
        perceptual: nn.Module | None,
        bf16: bool,
        device: torch.device,
    ) -> None:
        self.autoencoder = autoencoder.train().to(device)
        self.discriminator = PatchDiscriminator(in_channels=config.model.in_channels, norm="batch").to(device)
        self.perceptual = perceptual.to(device) if perceptual is not None else None
        self.log_variance = torch.zeros((), device=device)
        self.loss, self.bf16, self.device = config.loss, bf16, device
        betas = (config.train.adam_beta1, config.train.adam_beta2)
        rate = config.train.learning_rate
        self.optimizer = torch.optim.Adam(self.autoencoder.parameters(), lr=rate, betas=betas)
        self.disc_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=rate, betas=betas)

    def __call__(self, images: Tensor) -> None:
        """Update on [B, C, H, W] in [-1, 1]."""
        images = images.to(self.device)

        # The generator's turn
        self._train_only(self.autoencoder)
        with autocast(self.device, enabled=self.bf16):
            reconstruction, nll, kl = self._reconstruct(images)
            g = -self.discriminator.logits(reconstruction).mean()
            weight = self.autoencoder.decoder.conv_out.weight
            (nll_grad,) = torch.autograd.grad(nll, weight, retain_graph=True)
            (g_grad,) = torch.autograd.grad(g, weight, retain_graph=True)
            adaptive = (nll_grad.norm() / (g_grad.norm() + 1e-4)).clamp(0.0, 1e4).detach() * self.loss.disc_weight
            loss = nll + self.loss.kl_weight * kl + adaptive * g
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

        # The discriminator's turn
        self._train_only(self.discriminator)
        with autocast(self.device, enabled=self.bf16):
            reconstruction, *_ = self._reconstruct(images)
            real = self.discriminator.logits(images)
            fake = self.discriminator.logits(reconstruction.detach())
            d = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
        self.disc_optimizer.zero_grad()
        d.backward()
        self.disc_optimizer.step()

    def _reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction, its negative log-likelihood and the KL divergence: sums over an image."""
        posterior = self.autoencoder.encode(images).latent_dist
        reconstruction = self.autoencoder.decode(posterior.sample()).sample
        distance = torch.abs(images - reconstruction)
        if self.perceptual is not None:
            perceptual = self.perceptual(images, reconstruction)  # [B] or [B, 1, 1, 1]
            distance = distance + self.loss.perceptual_weight * perceptual.view(-1, 1, 1, 1)
        nll = distance / torch.exp(self.log_variance) + self.log_variance
        return reconstruction, nll.sum() / len(images), posterior.kl().sum() / len(images)

    def _train_only(self, network: nn.Module) -> None:
        """Leave the other network's gradients out, as the published trainer's framework does."""
        self.autoencoder.requires_grad_(network is self.autoencoder)
        self.discriminator.requires_grad_(network is self.discriminator)
