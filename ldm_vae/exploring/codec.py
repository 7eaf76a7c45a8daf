"""An autoencoder as exploring uses it: encoded to a posterior, decoded from any latents, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ldm_vae.config.commands.explore import ExploreOptions
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import RunError, require, require_divides
from ldm_vae.models.families import family_of
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.fingerprint import Fingerprint, fingerprint
from ldm_vae.models.inference import InferenceAutoencoder, local_device
from ldm_vae.models.load import load_vae
from ldm_vae.models.precision import use_bf16
from ldm_vae.system.launch import join_processes


class Codec(Protocol):
    """Encodes and decodes batches without gradients: an `InferenceAutoencoder`, or a model as Python holds it."""

    @property
    def family(self) -> Family:
        """The autoencoder."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What tells it from others."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the posterior's mean and standard deviation (None where nothing is random), float32 [B, c, h, w].

        Args:
            images: [B, C, H, W] in [-1, 1].
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, C, H, W], about in [-1, 1], of the autoencoder's own latents [B, c, h, w]."""


@dataclass(frozen=True)
class PlainCodec:
    """A model that stays as it is, on its device and in its type."""

    family: Family

    @classmethod
    def of(cls, autoencoder: DiffusersModel) -> PlainCodec:
        """Wrap a diffusers model."""
        return cls(family_of(autoencoder))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.family.device

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What tells it from others."""
        return fingerprint(self.family)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the posterior's moments, as `Codec` says."""
        return self.family.encode_moments(images.to(self.device, self.family.dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, as `Codec` says."""
        return self.family.decode(latents.to(self.device, self.family.dtype))


class FastCodec(InferenceAutoencoder):
    """A model at its fastest, changed in place; its fingerprint is that of the weights before any rounding."""

    def __init__(self, family: Family, *, bf16: bool, memory_gib: float | None = None) -> None:
        self.fingerprint = fingerprint(family)
        super().__init__(family, bf16=bf16, memory_gib=memory_gib)


def open_codec(options: ExploreOptions, rules: ReadingRules) -> FastCodec:
    """Load the autoencoder that a command names, on this process's device.

    Args:
        options: What was asked for.
        rules: How pictures are read.

    Raises:
        ValueError: There is none, it doesn't fit the pictures, or several processes were started.
    """
    require(join_processes().num_processes == 1, "explore is for one process; start it without a launcher")
    family = load_vae(options.vae, needs_scaling=False, **options.vae_arguments).family
    rules.check_channels(family.in_channels)
    if options.resolution is not None:
        require_divides(family.spatial_factor, options.resolution, name="resolution", whose="the model's factor")
    bf16 = use_bf16(options.mixed_precision, device=local_device())
    return FastCodec(family, bf16=bf16, memory_gib=options.memory_gib)


def decode_finite(codec: Codec, latents: Tensor) -> Tensor:
    """Return decoded images [B, C, H, W] on the CPU.

    Raises:
        RunError: They hold NaN or infinity.
    """
    images = codec.decode(latents).cpu()
    if not images.isfinite().all():
        raise RunError(
            "the decoder makes NaN or infinity of these latents; are the weights of <vae> whole? Try "
            "<mixed_precision> no"
        )
    return images
