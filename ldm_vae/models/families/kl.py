"""AutoencoderKL: the autoencoder of Stable Diffusion, SDXL, SD3 and FLUX (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownEncoderBlock2D,
    AttnUpDecoderBlock2D,
    DownEncoderBlock2D,
    UNetMidBlock2D,
    UpDecoderBlock2D,
)
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.bottlenecks.bottleneck import Bottleneck
from ldm_vae.models.bottlenecks.gaussian import Gaussian
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.families.parts import Half


class KL(Family):
    """Residual blocks and attention on both sides, a Gaussian posterior between them."""

    name = "kl"
    summary: ClassVar[str] = "A KL-regularised image autoencoder"
    tag: ClassVar[str | None] = "autoencoder-kl"
    encode_call: ClassVar[str] = "encode(images).latent_dist.sample()"
    diffusers_class: ClassVar[type] = AutoencoderKL
    bottlenecks: ClassVar[tuple[type[Bottleneck], ...]] = (Gaussian,)
    has_single_file = True
    scalings: ClassVar[tuple[str, ...]] = ("shift", "per_channel")
    changes_channels: ClassVar[bool] = True
    is_residual = True
    architecture: ClassVar[Sequence[str]] = (
        "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
        "act_fn", "latent_channels", "norm_num_groups", "use_quant_conv", "use_post_quant_conv",
        "mid_block_add_attention",
    )  # fmt: skip
    decoder_names: ClassVar[tuple[str, ...]] = ("decoder.", "post_quant_conv.")
    default_latent_channels: ClassVar[int] = 4
    blocks = (ResnetBlock2D, Attention, Upsample2D, Downsample2D)
    levels = (DownEncoderBlock2D, AttnDownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D, AttnUpDecoderBlock2D)

    @classmethod
    def of(cls, model: DiffusersModel) -> Self:
        """Wrap a model with its Gaussian posterior."""
        return cls(model, Gaussian())

    @classmethod
    def arguments(cls, config: ModelConfig) -> dict[str, Any]:
        """Return the arguments of the diffusers class for a model from scratch."""
        levels = range(len(config.block_out_channels))
        with_attention = [level in config.attention_levels for level in levels]
        down = ["AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in with_attention]
        up = ["AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D" for attention in reversed(with_attention)]
        return {
            "in_channels": config.in_channels,
            "out_channels": config.made_channels,
            "down_block_types": tuple(down),
            "up_block_types": tuple(up),
            "block_out_channels": tuple(config.block_out_channels),
            "layers_per_block": config.layers_per_block,
            "latent_channels": config.latent_channels or cls.default_latent_channels,
            "norm_num_groups": config.norm_num_groups,
            "mid_block_add_attention": config.mid_block_add_attention,
            "use_quant_conv": config.use_quant_conv,
            "use_post_quant_conv": config.use_quant_conv,
        }

    @property
    def spatial_factor(self) -> int:
        """Side of the square of image pixels that one latent pixel stands for; every level but the last halves it."""
        return 2 ** (len(self.model.config.block_out_channels) - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Return mean and log-variance, [B, 2c, h, w], of images [B, C, H, W] in [-1, 1]."""
        hidden = self.model.encoder(images)
        return hidden if self.model.quant_conv is None else self.model.quant_conv(hidden)

    def encode_features(self, images: Tensor) -> Tensor:
        """Run the encoder up to the input of `hidden_layer`: [B, C, H, W] to [B, width, h, w]."""
        encoder = self.model.encoder
        if self.model.quant_conv is not None:
            return encoder(images)
        hidden = encoder.conv_in(images)
        for down_block in encoder.down_blocks:
            hidden = down_block(hidden)
        return encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(hidden)))

    def decode_features(self, z: Tensor) -> Tensor:
        """Run the decoder up to the input of its last layer: [B, c, h, w] to [B, width, H, W]."""
        decoder = self.model.decoder
        if self.model.post_quant_conv is not None:
            z = self.model.post_quant_conv(z)
        hidden = decoder.mid_block(decoder.conv_in(z))
        for up_block in decoder.up_blocks:
            hidden = up_block(hidden)
        return decoder.conv_act(decoder.conv_norm_out(hidden))

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        return self.model.decoder.conv_out

    @property
    def encoder_side(self) -> list[nn.Module]:
        """Encoder and quant_conv."""
        return [self.model.encoder, *([] if self.model.quant_conv is None else [self.model.quant_conv])]

    @property
    def hidden_layer(self) -> nn.Conv2d:
        """The layer quant_conv, or the encoder's last convolution where there is none."""
        return self.model.encoder.conv_out if self.model.quant_conv is None else self.model.quant_conv

    @property
    def halves(self) -> tuple[Half, Half]:
        """Encoder and decoder; quant_conv and post_quant_conv belong to neither."""
        encoder, decoder = (
            Half(network=network, first=network.conv_in, last=network.conv_out)
            for network in (self.model.encoder, self.model.decoder)
        )
        return encoder, decoder
