"""AutoencoderTiny: TAESD's architecture (Bohan 2023), small and without norms."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

from ldm_vae.config.model import ModelConfig
from ldm_vae.config.rules import require
from ldm_vae.models.bottlenecks.deterministic import Deterministic
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.families.parts import Half

DEFAULT_LATENT_CHANNELS = 4


class Tiny(Family):
    """Two chains of convolutions. The class takes images in [-1, 1], its layers see them in [0, 1]."""

    name = "tiny"
    summary = "A tiny image autoencoder"
    encode_call = "encode(images).latents"
    diffusers_class = AutoencoderTiny
    bottlenecks = (Deterministic,)
    scalings = ("shift",)
    derived_fields = ("block_out_channels",)
    architecture = (
        "in_channels", "out_channels", "encoder_block_out_channels", "decoder_block_out_channels", "act_fn",
        "upsample_fn", "latent_channels", "upsampling_scaling_factor", "num_encoder_blocks", "num_decoder_blocks",
    )  # fmt: skip
    decoder_names = ("decoder.",)
    blocks = (AutoencoderTinyBlock,)
    levels = ()

    @classmethod
    def of(cls, model: DiffusersModel) -> Self:
        """Wrap a model. Its own way of saving memory is left off: it forgets the step from [-1, 1] to [0, 1]."""
        return cls(model, Deterministic())

    @classmethod
    def arguments(cls, config: ModelConfig) -> dict[str, Any]:
        """The class's arguments for a model from scratch."""
        widths = config.block_out_channels
        decoder_widths = config.decoder_block_out_channels or widths
        for name, half in (("block_out_channels", widths), ("decoder_block_out_channels", decoder_widths)):
            require(
                len(set(half)) == 1,
                f"<model.{name}> is {half}; the family tiny has one width for all levels of a half",
            )
        deep = (config.layers_per_block,) * (len(widths) - 1)
        return {
            "in_channels": config.in_channels,
            "out_channels": config.made_channels,
            "encoder_block_out_channels": tuple(widths),
            "decoder_block_out_channels": tuple(reversed(decoder_widths)),
            "num_encoder_blocks": (1, *deep),
            "num_decoder_blocks": (*deep, 1),
            "latent_channels": config.latent_channels or DEFAULT_LATENT_CHANNELS,
        }

    @property
    def spatial_factor(self) -> int:
        """Every level but the first halves the side."""
        return 2 ** (len(self.model.config.encoder_block_out_channels) - 1)

    def encode(self, images: Tensor) -> Tensor:
        """The latents [B, c, h, w] of images [B, C, H, W] in [-1, 1]."""
        return self.model.encoder(images)

    def encode_features(self, images: Tensor) -> Tensor:
        """The encoder up to the input of its last layer: [B, C, H, W] to [B, width, h, w]."""
        hidden = images.add(1).div(2)
        for layer in self.model.encoder.layers[:-1]:
            hidden = layer(hidden)
        return hidden

    def decode_features(self, z: Tensor) -> Tensor:
        """The decoder up to the input of its last layer: [B, c, h, w] to [B, width, H, W]."""
        hidden = torch.tanh(z / 3) * 3
        for layer in self.model.decoder.layers[:-1]:
            hidden = layer(hidden)
        return hidden

    def head(self, features: Tensor) -> Tensor:
        """Images, float32 [B, C, H, W], of the last layer's input."""
        return self.last_layer(features).float().mul(2).sub(1)

    def last_layer_gradient(self, features: Tensor, grad_output: Tensor) -> Tensor:
        """As for every family; y is twice the last layer's output, less 1."""
        return super().last_layer_gradient(features, 2 * grad_output)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        return self.model.decoder.layers[-1]

    @property
    def encoder_side(self) -> list[nn.Module]:
        """The encoder."""
        return [self.model.encoder]

    @property
    def hidden_layer(self) -> nn.Conv2d:
        """The encoder's last convolution."""
        return self.model.encoder.layers[-1]

    @property
    def halves(self) -> tuple[Half, Half]:
        """Encoder and decoder."""
        encoder, decoder = (
            Half(network=network, first=network.layers[0], last=network.layers[-1])
            for network in (self.model.encoder, self.model.decoder)
        )
        return encoder, decoder
