"""Lower bounds on the log-density of pictures: the evidence lower bound, and that of importance weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm_vae.losses.kl import kl_divergence
from ldm_vae.losses.likelihood import LikelihoodKind, log_likelihood
from ldm_vae.models.bottlenecks.bottleneck import Latent
from ldm_vae.system.float64 import float64_tensor, in_float64


class Autoencoder(Protocol):
    """What of an autoencoder the bounds follow from; a `Family` has it."""

    def encode_latent(self, images: Tensor) -> Latent:
        """Return the posterior of images [B, C, H, W], with its log-variance."""

    def decode(self, z: Tensor) -> Tensor:
        """Return where the likelihood is centred, [B, C, H, W], of latents [B, c, h, w]."""


@dataclass(frozen=True, kw_only=True)
class DensityBounds:
    """Bounds on each picture's log-density: [B] each, float64, in nats of a picture, per level as `log_likelihood`."""

    elbo: Tensor
    """Mean over the samples of log w: the evidence lower bound, without bias (Kingma & Welling 2014)."""
    iwae: Tensor
    """log of the mean of w over the samples: no less than `elbo` for the same samples (Burda et al. 2016)."""
    distortion: Tensor
    """Mean over the samples of -log p(x given z)."""
    rate: Tensor
    """KL divergence of the posterior from the prior, in closed form; about `-elbo` less `distortion`."""


@torch.no_grad()
def density_bounds(
    vae: Autoencoder, values: Tensor, *, kind: LikelihoodKind, logvar: float, noise: Iterable[Tensor]
) -> DensityBounds:
    """Return bounds on the log-density of pictures, from weights w = p(x given z) p(z) / q(z given x).

    The prior p(z) is standard normal, q the diagonal normal posterior that the encoder gives (Burda et al. 2016,
    "Importance Weighted Autoencoders", equation 8). Sums over elements and samples are float64.

    Args:
        vae: The autoencoder.
        values: [B, C, H, W] in [-1, 1], as `log_likelihood` takes them: dequantised, or levels for `logistic`.
        kind: The likelihood p(x given z).
        logvar: Its log-variance.
        noise: Standard normal, [B, n, c, h, w] each: n samples of each picture that are decoded together. How the
            samples are divided doesn't matter.
    """
    latent = vae.encode_latent(values)
    assert latent.posterior_logvar is not None, "a bound needs a posterior"
    mean, std = (each[:, None] for each in (latent.mean, torch.exp(0.5 * latent.posterior_logvar)))
    pixels, posterior_logvar = (in_float64(each)[:, None] for each in (values, latent.posterior_logvar))
    likelihood_logvar = float64_tensor([logvar], device=pixels.device)
    log_likelihoods, log_ratios = [], []
    for eps in noise:
        eps = eps.to(mean)
        z = mean + std * eps
        y = in_float64(vae.decode(z.flatten(0, 1))).unflatten(0, eps.shape[:2])
        of_pixels = log_likelihood(pixels, y, likelihood_logvar, kind=kind)
        log_likelihoods.append(of_pixels.flatten(2).sum(2))
        # log p(z) - log q(z given x), where the constants cancel
        of_latents = 0.5 * (in_float64(eps).square() + posterior_logvar - in_float64(z).square())
        log_ratios.append(of_latents.flatten(2).sum(2))
    of_images = torch.cat(log_likelihoods, dim=1)  # [B, K]
    log_weights = of_images + torch.cat(log_ratios, dim=1)
    return DensityBounds(
        elbo=log_weights.mean(1),
        iwae=torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1]),
        distortion=-of_images.mean(1),
        rate=kl_divergence(in_float64(latent.mean), in_float64(latent.posterior_logvar)),
    )
