"""The interface to a class of autoencoders. A diffusers model's insides are named by its subclasses alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.bottlenecks.bottleneck import Bottleneck, Latent
from ldm_vae.models.families.parts import Half, Reconstruction, weight_gradient
from ldm_vae.models.families.wrapped import ENCODER_IS_TRAINED, DiffusersModel, WrappedModel
from ldm_vae.models.normalisation import SCALING_FIELDS, Normalisation

__all__ = ["DiffusersModel", "Family"]


class Family(WrappedModel, ABC):
    """One diffusers model behind the interface that training, encoding, exporting and evaluation use.

    A family is a class of diffusers' autoencoders; an object of it is one model with its bottleneck. A new family is
    a subclass in a file of its own and its name in `FAMILIES`.
    """

    name: ClassVar[str]
    """As `model.family` has it."""
    summary: ClassVar[str]
    """What a model card calls it."""
    tag: ClassVar[str | None] = None
    """The hub's tag for models of the class, where it isn't the class's name in small letters."""
    encode_call: ClassVar[str]
    """How Python asks a model of the class for its latents, given `images`."""
    diffusers_class: ClassVar[type]
    bottlenecks: ClassVar[tuple[type[Bottleneck], ...]]
    """Kinds that the class can hold; the first is its own."""
    has_single_file: ClassVar[bool] = False
    """Whether the LDM layout is for this class."""
    scalings: ClassVar[tuple[str, ...]] = ()
    """What the class's config can say of latents beside a scaling_factor: `shift`, and `per_channel` statistics."""
    changes_channels: ClassVar[bool] = False
    """Whether the number of latent channels can be changed."""
    is_residual: ClassVar[bool] = False
    """Whether both halves are residual streams read through norms, as quiet weights and the repair of float16 need."""
    derived_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of a model's config that the class makes of others, and takes none of."""
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
        self.stand_in: Callable[[Tensor], Latent] | None = None
        """Makes latents of images in place of an encoder that isn't trained; None: nothing does."""

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
        untaken = (*cls.derived_fields, ENCODER_IS_TRAINED)
        taken = {name: value for name, value in fields.items() if name not in untaken}
        with torch.device(device):
            family = cls.of(cls.diffusers_class.from_config(taken))  # type: ignore[attr-defined]
        family.mark_encoder(trained=fields.get(ENCODER_IS_TRAINED) is not False)
        return family

    @classmethod
    def from_pretrained(cls, source: str | Path, **arguments: Any) -> Self:
        """Load a folder or a hub id as diffusers does, with diffusers' arguments."""
        return cls.of(cls.diffusers_class.from_pretrained(source, **arguments))  # type: ignore[attr-defined]

    def with_fields(self, fields: Mapping[str, Any]) -> Self:
        """Return a float32 copy on the CPU with the same weights, whose config has the fields that the class knows."""
        config = {name: value for name, value in self.model.config.items() if not name.startswith("_")}
        copy = self.from_config({**config, **{name: value for name, value in fields.items() if name in config}})
        copy.model.load_state_dict(self.model.state_dict())
        return copy

    def configure(self, config: ModelConfig) -> None:
        """Set the bottleneck up as settings say that it is trained.

        Raises:
            ValueError: The model isn't as they say.
        """
        return None

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
    def codebook_size(self) -> int | None:
        """Number of codes that latents are made of; None where it isn't finite."""
        codes = self.bottleneck.codes
        return None if codes is None else len(codes)

    @property
    def patch_size(self) -> int:
        """Side of the patches of latent pixels that pipelines make channels of before they normalise; 1: none."""
        return 1

    @property
    def image_multiple(self) -> int:
        """Sides of images must be multiples of this, so that their latents can be normalised."""
        return self.spatial_factor * self.patch_size

    @property
    def scaling(self) -> dict[str, Any]:
        """How the class's pipelines normalise, as `Normalisation.from_config` takes it; None where nothing says it."""
        return {name: self.model.config.get(name) for name in SCALING_FIELDS}

    @property
    def normalisation(self) -> Normalisation:
        """The map from the model's own latents to those that a diffusion model sees, on the CPU."""
        return Normalisation.from_config(self.scaling)

    def set_statistics(self, *, mean: Tensor, variance: Tensor) -> None:
        """Replace what pipelines normalise patches by, [c·p·p] each."""
        raise NotImplementedError(f"{self.class_name()} holds no statistics of latents")

    def take_as_normalised(self) -> None:
        """Have pipelines take latents as they are, where the model itself and not its config.json says how."""
        return None

    # In pieces, with gradients: what the training step runs

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the encoder's output, which the bottleneck takes, of images [B, C, H, W] in [-1, 1]."""

    @abstractmethod
    def encode_features(self, images: Tensor) -> Tensor:
        """Run the encoder up to the input of `hidden_layer`: [B, C, H, W] to [B, width, h, w]."""

    def encode_head(self, features: Tensor) -> Tensor:
        """Return the encoder's output, of the input of `hidden_layer`."""
        return self.hidden_layer(features)

    def hidden_layer_gradient(self, features: Tensor, grad_output: Tensor) -> Tensor:
        """The gradient at the weight V of `hidden_layer`, float32, of a loss of the encoder's output.

        Args:
            features: [B, width, h, w], the layer's input.
            grad_output: The loss's gradient at the output.
        """
        return weight_gradient(self.hidden_layer, features, grad_output)

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

    def last_layer_gradient(self, features: Tensor, grad_output: Tensor) -> Tensor:
        """The gradient at W, float32, of a loss of y, without a backward through the graph.

        Args:
            features: [B, width, H, W], the last layer's input.
            grad_output: [B, C, H, W], the loss's gradient at y.
        """
        return weight_gradient(self.last_layer, features, grad_output)

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
    def inner_weights(self) -> list[nn.Parameter]:
        """Weights of convolutions and linear layers inside blocks.

        The others border on the image or the latent, where rows or columns have a meaning of their own.
        """
        borders = {id(module) for half in self.halves for module in (half.first, half.last)}
        blocks = [each for each in self.model.modules() if isinstance(each, self.blocks) and id(each) not in borders]
        weights = [parameter for block in blocks for parameter in block.parameters() if parameter.ndim >= 2]
        return list({id(weight): weight for weight in weights}.values())

    @property
    @abstractmethod
    def halves(self) -> tuple[Half, Half]:
        """Encoder and decoder."""

    # Whole, without gradients

    @torch.no_grad()
    def encode_latent(self, images: Tensor, noise: Tensor | None = None) -> Latent:
        """Return the latent of images [B, C, H, W] in [-1, 1].

        Raises:
            ValueError: The encoder isn't trained, and nothing stands in for it.
        """
        if self.has_encoder:
            return self.bottleneck(self.encode(images), noise)
        if self.stand_in is None:
            raise ValueError(
                f"this {self.class_name()} only decodes, its teacher's latents; its encoder isn't trained"
            )
        return self.stand_in(images)

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the posterior's mean and standard deviation (None where nothing is random), float32 [B, c, h, w].

        Args:
            images: [B, C, H, W] in [-1, 1].
        """
        latent = self.encode_latent(images)
        return latent.mean, latent.stored.get("std")

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return images, float32 [B, C, H, W], about in [-1, 1], of the model's own latents [B, c, h, w]."""
        return self.model.decode(z).sample.float()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Encode images [B, C, H, W] in [-1, 1] and decode the posterior's mean."""
        return self.decode_mean(self.encode_latent(images))

    def decode_mean(self, latent: Latent) -> Reconstruction:
        """Decode a latent's mean."""
        decoded = self.decode(latent.mean.to(self.dtype))
        return Reconstruction(latent.mean, latent.stored.get("std"), decoded, latent.stored.get("indices"))
