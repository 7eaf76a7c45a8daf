"""A linear autoencoder behind the family's interface: probabilistic PCA, whose density and posterior are known.

Each pixel is a vector of C channels by itself: x = W z + mean + noise of variance s², with z standard normal
(Tipping & Bishop 1999, "Probabilistic Principal Component Analysis").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.bottlenecks.bottleneck import Bottleneck
from ldm_vae.models.bottlenecks.gaussian import Gaussian
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.families.parts import Half


class LinearAutoencoder(ModelMixin, ConfigMixin):
    """Two convolutions of 1x1: to mean and log-variance, and back."""

    @register_to_config
    def __init__(self, in_channels: int = 3, out_channels: int = 3, latent_channels: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, 2 * latent_channels, 1)
        self.decoder = nn.Conv2d(latent_channels, out_channels, 1)

    def decode(self, z: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decoder(z))


class Linear(Family):
    """`LinearAutoencoder` behind the interface."""

    name = "linear"
    summary = "A linear image autoencoder"
    encode_call = "encoder(images)"
    diffusers_class: ClassVar[type] = LinearAutoencoder
    bottlenecks: ClassVar[tuple[type[Bottleneck], ...]] = (Gaussian,)
    architecture: ClassVar[Sequence[str]] = ("in_channels", "out_channels", "latent_channels")
    decoder_names = ("decoder.",)
    blocks: ClassVar[tuple[type[nn.Module], ...]] = ()
    levels: ClassVar[tuple[type[nn.Module], ...]] = ()
    spatial_factor = 1

    @classmethod
    def of(cls, model: DiffusersModel) -> Self:
        return cls(model, Gaussian())

    @classmethod
    def arguments(cls, config: ModelConfig) -> dict[str, Any]:
        return {"latent_channels": config.latent_channels or 2}

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encoder(images)

    def encode_features(self, images: Tensor) -> Tensor:
        return images

    def decode_features(self, z: Tensor) -> Tensor:
        return z

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.model.decoder

    @property
    def hidden_layer(self) -> nn.Conv2d:
        return self.model.encoder

    @property
    def encoder_side(self) -> list[nn.Module]:
        return [self.model.encoder]

    @property
    def halves(self) -> tuple[Half, Half]:
        encoder, decoder = self.model.encoder, self.model.decoder
        return Half(network=encoder, first=encoder, last=encoder), Half(network=decoder, first=decoder, last=decoder)


class Ppca:
    """Probabilistic PCA of most likelihood, in closed form (Tipping & Bishop 1999, equations 7 and 8).

    Its W has orthogonal columns, so that the posterior's covariance is diagonal, as an autoencoder's is.

    Args:
        samples: [n, C].
        latent_channels: Columns of W.
    """

    def __init__(self, samples: Tensor, *, latent_channels: int) -> None:
        self.mean = samples.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(samples.T, correction=0))  # rising
        noise = values[:-latent_channels].mean()
        self.variance = noise.item()
        self.weight = vectors[:, -latent_channels:] * (values[-latent_channels:] - noise).sqrt()

    def log_density(self, images: Tensor) -> Tensor:
        """Return the log-density of images [B, C, H, W], [B]."""
        pixels = images.double().permute(0, 2, 3, 1)
        noise = torch.full_like(self.mean, self.variance)
        return LowRankMultivariateNormal(self.mean, self.weight, noise).log_prob(pixels).sum(dim=(1, 2))

    @torch.no_grad()
    def autoencoder(self, *, shift: float = 0.0, widening: float = 0.0) -> Linear:
        """Return the autoencoder whose posterior is the exact one (Tipping & Bishop 1999, section 3), or a wrong one.

        Args:
            shift: What is added to the posterior's mean.
            widening: What is added to its log-variance.
        """
        channels, latents = self.weight.shape
        model = LinearAutoencoder(channels, channels, latents)
        precision = self.weight.T @ self.weight / self.variance + torch.eye(latents)
        project = torch.linalg.solve(precision, self.weight.T) / self.variance
        model.encoder.weight.zero_()
        model.encoder.weight[:latents, :, 0, 0] = project
        model.encoder.bias[:latents] = shift - project @ self.mean
        model.encoder.bias[latents:] = widening - precision.diagonal().log()
        model.decoder.weight[:, :, 0, 0] = self.weight
        model.decoder.bias.copy_(self.mean)
        return Linear.of(model.eval())

    @property
    def logvar(self) -> float:
        """Log-variance of the noise."""
        return math.log(self.variance)


def linear_samples(count: int, *, seed: int = 0) -> Tensor:
    """Return vectors [n, 3] of a linear-Gaussian model, in float64, most of them within [-1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.tensor([[0.25, 0.0], [0.2, 0.1], [0.15, -0.2]], dtype=torch.float64)
    latents, noise = (torch.randn(count, n, dtype=torch.float64, generator=rng) for n in (2, 3))
    return latents @ weight.T + torch.tensor([0.1, 0.0, -0.1], dtype=torch.float64) + 0.05 * noise
