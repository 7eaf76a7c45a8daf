"""The interface to a class of autoencoders. A diffusers model's insides are named by its subclasses alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.bottlenecks.bottleneck import Bottleneck, Latent
from ldm_vae.models.normalisation import SCALING_FIELDS, Normalisation

DiffusersModel: TypeAlias = ModelMixin
"""An autoencoder as diffusers knows it, of any class in `FAMILIES`."""


class Reconstruction(NamedTuple):
    """Images encoded and decoded without noise, float32."""

    mean: Tensor
    """The posterior's mean, [B, c, h, w]."""
    std: Tensor
    """The posterior's standard deviation, [B, c, h, w]; zero where nothing is random."""
    images: Tensor
    """The decoded mean, [B, C, H, W], about in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """Encoder or decoder, with the layers at its borders."""

    network: nn.Module
    first: nn.Module
    last: nn.Module


class Family(ABC):
    """One diffusers model behind the interface that training, encoding, exporting and evaluation use.

    A family is a class of diffusers' autoencoders; an object of it is one model with its bottleneck. A new family is
    a subclass in a file of its own and its name in `FAMILIES`.
    """

    diffusers_class: ClassVar[type]
    architecture: ClassVar[Sequence[str]]
    """Fields of config.json that tell two architectures apart; the fingerprint digests them."""
    decoder_names: ClassVar[tuple[str, ...]]
    """Beginnings of the names of weights that a latent doesn't depend on."""
    blocks: ClassVar[tuple[type[nn.Module], ...]]
    """Blocks that activation checkpointing recomputes one by one."""
    levels: ClassVar[tuple[type[nn.Module], ...]]
    """Levels, of blocks of one resolution, that activation checkpointing recomputes whole."""

    def __init__(self, model: DiffusersModel, bottleneck: Bottleneck) -> None:
        self.model = model
        self.bottleneck = bottleneck

    # Construction

    @classmethod
    @abstractmethod
    def of(cls, model: DiffusersModel) -> Self:
        """Wrap a diffusers model of this class, with the bottleneck that its configuration says."""

    @classmethod
    @abstractmethod
    def arguments(cls, config: ModelConfig) -> dict[str, Any]:
        """Return the arguments of the diffusers class for a model from scratch."""

    @classmethod
    def build(cls, config: ModelConfig) -> Self:
        """Build a model from scratch, in float32, its parameters trainable."""
        return cls.of(cls.diffusers_class(**cls.arguments(config)))

    @classmethod
    def from_config(cls, fields: Mapping[str, Any], *, device: str = "cpu") -> Self:
        """Build the model of a config.json; on the device `meta` it takes no memory."""
        with torch.device(device):
            return cls.of(cls.diffusers_class.from_config(dict(fields)))  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, source: str | Path, **arguments: Any) -> Self:
        """Load a folder or a hub id as diffusers does, with diffusers' arguments."""
        return cls.of(cls.diffusers_class.from_pretrained(source, **arguments))  # type: ignore[attr-defined]

    def with_fields(self, fields: Mapping[str, Any]) -> Self:
        """Return a float32 copy on the CPU whose config has these fields, with the same weights."""
        config = {name: value for name, value in self.model.config.items() if not name.startswith("_")}
        copy = self.from_config({**config, **fields})
        copy.model.load_state_dict(self.model.state_dict())
        return copy

    # What it is

    @classmethod
    def class_name(cls) -> str:
        """The diffusers class's name, as config.json has it."""
        return cls.diffusers_class.__name__

    @property
    @abstractmethod
    def spatial_factor(self) -> int:
        """Side of the square of image pixels that one latent pixel stands for."""

    @property
    def in_channels(self) -> int:
        """Image channels that the encoder takes."""
        return int(self.model.config.in_channels)

    @property
    def out_channels(self) -> int:
        """Image channels that the decoder makes."""
        return int(self.model.config.out_channels)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return int(self.model.config.latent_channels)

    @property
    def scaling(self) -> dict[str, Any]:
        """The fields of config.json that say how latents are normalised, None where the config has none."""
        return {name: self.model.config.get(name) for name in SCALING_FIELDS}

    @property
    def normalisation(self) -> Normalisation:
        """The map from the model's own latents to those that a diffusion model sees, on the CPU."""
        return Normalisation.from_config(self.scaling)

    # In pieces, with gradients: what the training step runs

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the encoder's output, which the bottleneck takes, of images [B, C, H, W] in [-1, 1]."""

    @abstractmethod
    def decode_features(self, z: Tensor) -> Tensor:
        """Run the decoder up to the input of its last layer: [B, c, h, w] to [B, width, H, W]."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution, at whose weight W the adaptive weight is measured."""

    def head(self, features: Tensor) -> Tensor:
        """Return images, float32 [B, C, H, W], of the last layer's input."""
        return self.last_layer(features).float()

    def compile_encoder(self) -> None:
        """Compile the encoder, in place; names and weights stay as they are."""
        self.model.encoder.compile()

    # Its parts

    @property
    @abstractmethod
    def encoder_side(self) -> list[nn.Module]:
        """The modules that make the latent, which decoder-only training freezes."""

    @property
    @abstractmethod
    def hidden_layer(self) -> nn.Conv2d:
        """The layer whose output the bottleneck takes."""

    @property
    @abstractmethod
    def halves(self) -> tuple[Half, Half]:
        """Encoder and decoder."""

    # Whole, without gradients

    @torch.no_grad()
    def encode_latent(self, images: Tensor, noise: Tensor | None = None) -> Latent:
        """Return the latent of images [B, C, H, W] in [-1, 1]."""
        return self.bottleneck(self.encode(images), noise)

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean and standard deviation, both float32 [B, c, h, w].

        The standard deviation is zero where nothing is random.

        Args:
            images: [B, C, H, W] in [-1, 1].
        """
        latent = self.encode_latent(images)
        std = latent.stored["std"] if "std" in latent.stored else torch.zeros_like(latent.mean)
        return latent.mean, std

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return images, float32 [B, C, H, W], about in [-1, 1], of the model's own latents [B, c, h, w]."""
        return self.model.decode(z).sample.float()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Encode images [B, C, H, W] in [-1, 1] and decode the posterior's mean."""
        mean, std = self.encode_moments(images)
        return Reconstruction(mean=mean, std=std, images=self.decode(mean.to(self.dtype)))

    # As a torch module

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' floating-point type."""
        return self.model.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model, in place, as torch's `Module.to` does."""
        nn.Module.to(self.model, *args, **kwargs)
        return self

    def eval(self) -> Self:
        """Put the model into eval mode, in place."""
        self.model.eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """Put the model into training mode, in place."""
        self.model.train(mode)
        return self
