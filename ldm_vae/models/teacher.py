"""A frozen autoencoder whose latents another one learns to make and to decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, pixel_shuffle, pixel_unshuffle

from ldm_vae.models.bottlenecks.bottleneck import Latent
from ldm_vae.models.families.family import Family
from ldm_vae.models.normalisation import Normalisation


class Teacher(ABC):
    """Gives its own latents in place of the student's.

    They are normalised as the teacher's pipelines do: a student in their place needs no scaling. FLUX.2's patches are
    put back into place after that.

    Args:
        normalisation: The teacher's, where it runs.
    """

    def __init__(self, normalisation: Normalisation) -> None:
        self._normalisation = normalisation

    @abstractmethod
    def moments(self, images: Tensor, stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return mean and standard deviation of the teacher's own latents, [B, c, h, w]; None where nothing is random.

        Args:
            images: [B, C, H, W] in [-1, 1].
            stored: What came with the images.
        """

    @torch.no_grad()
    def latent(self, images: Tensor, noise: Tensor | None, stored: Mapping[str, Tensor]) -> Latent:
        """Return the latent that the student is to make of images, and decodes meanwhile.

        Args:
            images: [B, C, H, W] in [-1, 1].
            noise: [B, c, h, w], standard normal; None: the mean is taken.
            stored: What came with the images.
        """
        own, own_std = self.moments(images, stored)
        normalise, patch_size = self._normalisation.normalise, self._normalisation.patch_size
        mean = pixel_shuffle(normalise(own), patch_size)
        if own_std is None:
            return Latent(z=mean, mean=mean, stored={"latents": mean})
        std = pixel_shuffle(pixel_unshuffle(own_std, patch_size) * self._normalisation.scale.abs(), patch_size)
        z = mean if noise is None else pixel_shuffle(normalise(own + own_std * noise), patch_size)
        return Latent(z=z, mean=mean, stored={"mean": mean, "std": std})

    def mean_latent(self, images: Tensor, stored: Mapping[str, Tensor]) -> Latent:
        """Return the mean of the teacher's latent, as one that nothing is random in: what a decoder is measured on.

        Args:
            images: See `latent`.
            stored: See `latent`.
        """
        mean = self.latent(images, None, stored).mean
        return Latent(z=mean, mean=mean)

    def teach(self, latent: Latent, images: Tensor, noise: Tensor, stored: Mapping[str, Tensor]) -> Latent:
        """Return the teacher's latent, with how far the student's is from it, `imitation`, as a loss.

        It is the mean squared distance of the means; where the student has a posterior, plus that of the standard
        deviations: the squared 2-Wasserstein distance of both normal distributions, an element.

        Args:
            latent: The student's.
            images: See `latent`.
            noise: See `latent`.
            stored: See `latent`.
        """
        taught = self.latent(images, noise, stored)
        imitation = mse_loss(latent.mean, taught.mean)
        if latent.posterior_logvar is not None:
            imitation += mse_loss(torch.exp(0.5 * latent.posterior_logvar), taught.stored["std"])
        return replace(taught, losses={"imitation": imitation})

    def compile_networks(self) -> None:
        """Compile what runs, in place; nothing does where latents are stored."""
        return None


class RunningTeacher(Teacher):
    """The autoencoder itself, which encodes the images.

    Args:
        family: The autoencoder; it isn't trained.
        device: Where it runs.
    """

    def __init__(self, family: Family, *, device: torch.device) -> None:
        super().__init__(family.normalisation.to(device))
        family.model.requires_grad_(False)
        self.family = family.eval().to(device, memory_format=torch.channels_last)

    def moments(self, images: Tensor, stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Encode the images."""
        return self.family.encode_moments(images)

    def compile_networks(self) -> None:
        """Compile the encoder, in place."""
        self.family.compile_encoder()


class StoredTeacher(Teacher):
    """The latents that it wrote, which come with the images: `mean`, and `std` where they were stored as moments."""

    def moments(self, images: Tensor, stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Take what was stored."""
        return stored["mean"], stored.get("std")
