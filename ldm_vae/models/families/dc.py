"""AutoencoderDC: the deep compression autoencoder of SANA (Chen et al. 2024, "Deep Compression Autoencoder")."""

from __future__ import annotations

import itertools
import math
from typing import Any, Self

import torch.nn.functional as F
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d, EfficientViTBlock, ResBlock
from torch import Tensor, nn

from ldm_vae.config.model import ModelConfig
from ldm_vae.config.rules import require
from ldm_vae.models.bottlenecks.deterministic import Deterministic
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.families.parts import Half

DEFAULT_LATENT_CHANNELS = 32
HEAD_DIM = 32
SCALE_OF_ATTENTION = (5,)


class DC(Family):
    """Space becomes channels on the way down, with shortcuts that no weight is needed for; linear attention deep down.

    Where the first level has no blocks, the first and last layers are such resamplings themselves.
    """

    name = "dc"
    summary = "A deep compression image autoencoder"
    encode_call = "encode(images).latent"
    diffusers_class = AutoencoderDC
    bottlenecks = (Deterministic,)
    architecture = (
        "in_channels", "latent_channels", "attention_head_dim", "encoder_block_types", "decoder_block_types",
        "encoder_block_out_channels", "decoder_block_out_channels", "encoder_layers_per_block",
        "decoder_layers_per_block", "encoder_qkv_multiscales", "decoder_qkv_multiscales", "upsample_block_type",
        "downsample_block_type", "decoder_norm_types", "decoder_act_fns", "encoder_out_shortcut",
        "decoder_in_shortcut", "decoder_conv_act_fn",
    )  # fmt: skip
    decoder_names = ("decoder.",)
    blocks = (ResBlock, EfficientViTBlock, DCDownBlock2d, DCUpBlock2d)
    levels = (nn.Sequential,)

    @classmethod
    def of(cls, model: DiffusersModel) -> Self:
        """Wrap a model."""
        return cls(model, Deterministic())

    @classmethod
    def arguments(cls, config: ModelConfig) -> dict[str, Any]:
        """The class's arguments for a model from scratch."""
        latent_channels = config.latent_channels or DEFAULT_LATENT_CHANNELS
        widths = {"encoder": config.block_out_channels}
        widths["decoder"] = config.decoder_block_out_channels or config.block_out_channels
        for first, second in itertools.chain.from_iterable(itertools.pairwise(half) for half in widths.values()):
            require(
                4 * first % second == 0,
                f"<model.block_out_channels> has {first} beside {second}; in the family dc each must divide four "
                f"times the one before",
            )
        attention = [level in config.attention_levels for level in range(len(config.block_out_channels))]
        arguments: dict[str, Any] = {"in_channels": config.in_channels, "latent_channels": latent_channels}
        arguments["attention_head_dim"] = math.gcd(
            HEAD_DIM, *(half[level] for half in widths.values() for level in config.attention_levels)
        )
        for name, half in widths.items():
            arguments |= {
                f"{name}_block_types": tuple("EfficientViTBlock" if there else "ResBlock" for there in attention),
                f"{name}_block_out_channels": tuple(half),
                f"{name}_layers_per_block": (config.layers_per_block,) * len(half),
                f"{name}_qkv_multiscales": tuple(SCALE_OF_ATTENTION if there else () for there in attention),
            }
        return arguments | {
            "encoder_out_shortcut": widths["encoder"][-1] % latent_channels == 0,
            "decoder_in_shortcut": widths["decoder"][-1] % latent_channels == 0,
        }

    @property
    def out_channels(self) -> int:
        """Image channels that the decoder makes: those of the encoder."""
        return self.in_channels

    @property
    def spatial_factor(self) -> int:
        """Every level but the first halves the side."""
        return int(self.model.spatial_compression_ratio)

    def encode(self, images: Tensor) -> Tensor:
        """The latents [B, c, h, w] of images [B, C, H, W] in [-1, 1]."""
        return self.model.encoder(images)

    def encode_features(self, images: Tensor) -> Tensor:
        """The encoder up to the input of its last layer: [B, C, H, W] to [B, width, h, w]."""
        hidden = self.model.encoder.conv_in(images)
        for down_block in self.model.encoder.down_blocks:
            hidden = down_block(hidden)
        return hidden

    def encode_head(self, features: Tensor) -> Tensor:
        """The latents, of the last layer's input, whose mean over groups of channels is added where widths divide."""
        latents = super().encode_head(features)
        encoder = self.model.encoder
        if not encoder.out_shortcut:
            return latents
        return latents + features.unflatten(1, (-1, encoder.out_shortcut_average_group_size)).mean(dim=2)

    def decode_features(self, z: Tensor) -> Tensor:
        """The decoder up to the input of its last layer: [B, c, h, w] to [B, width, H, W], or half that size."""
        decoder = self.model.decoder
        hidden = decoder.conv_in(z)
        if decoder.in_shortcut:
            hidden = hidden + z.repeat_interleave(decoder.in_shortcut_repeats, dim=1)
        for up_block in reversed(decoder.up_blocks):
            hidden = up_block(hidden)
        return decoder.conv_act(decoder.norm_out(hidden.movedim(1, -1)).movedim(-1, 1))

    def head(self, features: Tensor) -> Tensor:
        """Images, float32 [B, C, H, W], of the last layer's input."""
        return self.model.decoder.conv_out(features).float()

    def last_layer_gradient(self, features: Tensor, grad_output: Tensor) -> Tensor:
        """As for every family; the last layer may come before, or after, a change of size."""
        last = self.model.decoder.conv_out
        if isinstance(last, DCUpBlock2d) and last.interpolate:
            features = F.interpolate(features, scale_factor=last.factor, mode=last.interpolation_mode)
        elif isinstance(last, DCUpBlock2d):
            grad_output = F.pixel_unshuffle(grad_output, last.factor)
        return super().last_layer_gradient(features, grad_output)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        last = self.model.decoder.conv_out
        return last.conv if isinstance(last, DCUpBlock2d) else last

    @property
    def encoder_side(self) -> list[nn.Module]:
        """The encoder."""
        return [self.model.encoder]

    @property
    def hidden_layer(self) -> nn.Conv2d:
        """The encoder's last convolution."""
        return self.model.encoder.conv_out

    @property
    def halves(self) -> tuple[Half, Half]:
        """Encoder and decoder. What comes into the decoder goes around its first layer too."""
        encoder, decoder = self.model.encoder, self.model.decoder
        return (
            Half(network=encoder, first=encoder.conv_in, last=encoder.conv_out),
            Half(network=decoder, first=decoder, last=decoder.conv_out),
        )
