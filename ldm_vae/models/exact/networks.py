"""The programs of diffusers' encoders and decoders: which passes each of their modules is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_dc import Decoder as DeepDecoder
from diffusers.models.autoencoders.autoencoder_dc import Encoder as DeepEncoder
from diffusers.models.autoencoders.vae import Decoder, DecoderTiny, Encoder, EncoderTiny
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownEncoderBlock2D,
    AttnUpDecoderBlock2D,
    AutoencoderTinyBlock,
    DownEncoderBlock2D,
    UNetMidBlock2D,
    UpDecoderBlock2D,
)
from diffusers.models.upsampling import Upsample2D
from torch import nn

from ldm_vae.models.exact import deep_compression
from ldm_vae.models.exact.program import AttentionPass, Program, require_plain

Append = Callable[[Program, Any, int], int]
"""Appends a module's passes over a map to a program, and returns the number of the result."""


def append(program: Program, module: nn.Module, source: int) -> int:
    """Append what a module does to map `source`, and return the number of the result.

    Raises:
        ValueError: Strips are not known for one of its modules.
    """
    for kind, append_kind in _KINDS.items():
        if isinstance(module, kind):
            return append_kind(program, module, source)
    known = ", ".join(kind.__name__ for kind in _KINDS)
    raise ValueError(f"{type(module).__name__} can't be run in strips; there are: {known}")


def append_all(program: Program, modules: Any, source: int) -> int:
    """Append modules one after the other."""
    for module in modules:
        source = append(program, module, source)
    return source


def make_program(half: nn.Module) -> Program:
    """Return the program of an encoder or decoder.

    Raises:
        ValueError: Strips are not known for the model's class.
    """
    of_half = next((of_half for kind, of_half in _HALVES.items() if isinstance(half, kind)), None)
    if of_half is None:
        known = ", ".join(sorted({kind.__name__ for kind in _HALVES}))
        raise ValueError(f"{type(half).__name__} can't be run in strips; there are: {known}")
    program = Program()
    first = next(module for module in half.modules() if isinstance(module, nn.Conv2d))
    of_half(program, half, program.add_map(first.in_channels))
    return program


def _residual_block(program: Program, block: Any, source: int) -> int:
    plain = block.upsample is None and block.downsample is None and block.time_emb_proj is None
    require_plain(
        plain and block.time_embedding_norm in ("default", "group"),
        "a residual block that resamples or takes an embedding",
    )
    hidden = program.add_conv(block.conv1, source, norm=block.norm1, act=block.nonlinearity)
    scale = float(block.output_scale_factor)
    after = None if scale == 1 else (lambda summed: summed / scale)
    return program.add_conv(
        block.conv2,
        hidden,
        norm=block.norm2,
        act=block.nonlinearity,
        residual=source,
        shortcut=block.conv_shortcut,
        after=after,
        pointwise_weights=0 if block.conv_shortcut is None else block.conv_shortcut.weight.numel(),
    )


def _attention(program: Program, attention: Any, source: int) -> int:
    plain = attention.spatial_norm is None and attention.norm_q is None and attention.group_norm is not None
    require_plain(plain and attention.residual_connection, "attention of another kind than these autoencoders'")
    target = program.add_map(program.channels[source])
    program.passes.append(AttentionPass(source=source, target=target, attention=attention))
    return target


def _downsample(program: Program, block: Any, source: int) -> int:
    require_plain(block.norm is None and block.use_conv, "a downsampler with a norm or without a convolution")
    pad = (0, 1, 0, 1) if block.padding == 0 else None  # diffusers pads on two sides only
    return program.add_conv(block.conv, source, pad=pad)


def _upsample(program: Program, block: Any, source: int) -> int:
    plain = block.norm is None and block.use_conv and not block.use_conv_transpose
    require_plain(plain and block.interpolate and block.name == "conv", "an upsampler of another kind")
    return program.add_conv(block.conv, source, upsample=2)


def _level(program: Program, level: Any, source: int) -> int:
    attentions = getattr(level, "attentions", None) or [None] * len(level.resnets)
    for block, attention in zip(level.resnets, attentions, strict=True):
        source = append(program, block, source)
        source = source if attention is None else append(program, attention, source)
    for name in ("downsamplers", "upsamplers"):
        source = append_all(program, getattr(level, name, None) or [], source)
    return source


def _middle(program: Program, block: Any, source: int) -> int:
    source = append(program, block.resnets[0], source)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        source = source if attention is None else append(program, attention, source)
        source = append(program, resnet, source)
    return source


def _tiny_block(program: Program, block: Any, source: int) -> int:
    first, act, second, _, third = block.conv
    hidden = program.add_conv(first, source, then=act)
    hidden = program.add_conv(second, hidden, then=act)
    shortcut = None if isinstance(block.skip, nn.Identity) else block.skip
    return program.add_conv(third, hidden, residual=source, shortcut=shortcut, after=block.fuse)


_KINDS: dict[type[nn.Module], Append] = {
    nn.Conv2d: lambda program, conv, source: program.add_conv(conv, source),
    ResnetBlock2D: _residual_block,
    Attention: _attention,
    Downsample2D: _downsample,
    Upsample2D: _upsample,
    UNetMidBlock2D: _middle,
    DownEncoderBlock2D: _level,
    AttnDownEncoderBlock2D: _level,
    UpDecoderBlock2D: _level,
    AttnUpDecoderBlock2D: _level,
    AutoencoderTinyBlock: _tiny_block,
    nn.Sequential: append_all,
    **deep_compression.KINDS,
}


def _encoder(program: Program, encoder: Any, source: int) -> int:
    hidden = append_all(program, [encoder.conv_in, *encoder.down_blocks, encoder.mid_block], source)
    return program.add_conv(encoder.conv_out, hidden, norm=encoder.conv_norm_out, act=encoder.conv_act)


def _decoder(program: Program, decoder: Any, source: int) -> int:
    require_plain(isinstance(decoder.conv_norm_out, nn.GroupNorm), "a decoder whose norms depend on the latent")
    hidden = append_all(program, [decoder.conv_in, decoder.mid_block, *decoder.up_blocks], source)
    return program.add_conv(decoder.conv_out, hidden, norm=decoder.conv_norm_out, act=decoder.conv_act)


def _tiny_encoder(program: Program, encoder: Any, source: int) -> int:
    first, *rest = encoder.layers
    hidden = program.add_conv(first, source, act=lambda images: images.add(1).div(2))
    return append_all(program, rest, hidden)


def _tiny_decoder(program: Program, decoder: Any, source: int) -> int:
    first, act, *rest, last = decoder.layers
    hidden = program.add_conv(first, source, act=lambda latents: (latents / 3).tanh() * 3, then=act)
    factor = 1
    for layer in rest:
        if isinstance(layer, nn.Upsample):
            factor = int(layer.scale_factor)  # type: ignore[arg-type]
            require_plain(layer.mode == "nearest" and factor == layer.scale_factor, "an upsampler of another kind")
        elif factor > 1:
            hidden, factor = program.add_conv(layer, hidden, upsample=factor), 1
        else:
            hidden = append(program, layer, hidden)
    return program.add_conv(last, hidden, after=lambda images: images.mul(2).sub(1))


_HALVES: dict[type[nn.Module], Append] = {
    Encoder: _encoder,
    Decoder: _decoder,
    EncoderTiny: _tiny_encoder,
    DecoderTiny: _tiny_decoder,
    DeepEncoder: lambda program, encoder, source: deep_compression.encoder(program, encoder, source, append_all),
    DeepDecoder: lambda program, decoder, source: deep_compression.decoder(program, decoder, source, append_all),
}
