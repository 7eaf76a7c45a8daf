"""The passes of AutoencoderDC: space becomes channels and back, with shortcuts; RMS norms; linear attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import SanaMultiscaleAttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d, EfficientViTBlock, ResBlock
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn

from ldm_vae.models.exact.program import LinearAttentionPass, Pointwise, Program, Rearrangement, require_plain


def _pointwise(program: Program, norm: nn.Module) -> Pointwise:
    """An RMS norm over channels, or a batch norm's running statistics, on [1, C, h, W]."""
    if isinstance(norm, nn.BatchNorm2d):
        program.batch_norms.append(norm)
        return norm
    require_plain(isinstance(norm, RMSNorm), f"a {type(norm).__name__}")
    return lambda hidden: norm(hidden.movedim(1, -1)).movedim(-1, 1)


def _res_block(program: Program, block: Any, source: int) -> int:
    hidden = program.add_conv(block.conv1, source, then=block.nonlinearity)
    return program.add_conv(block.conv2, hidden, then=_pointwise(program, block.norm), residual=source)


def _vit_block(program: Program, block: Any, source: int) -> int:
    attention = block.attn
    plain = isinstance(attention.processor, SanaMultiscaleAttnProcessor2_0) and attention.residual_connection
    require_plain(plain, "linear attention of another kind than AutoencoderDC's")
    hidden = program.add_map(program.channels[source])
    norm = _pointwise(program, attention.norm_out)
    program.passes.append(LinearAttentionPass(source=source, target=hidden, attention=attention, norm_out=norm))
    return _gated_convolution(program, block.conv_out, hidden)


def _gated_convolution(program: Program, block: Any, source: int) -> int:
    """A 1x1 to many channels, a 3x3 of each, half of them the other half's gate, and a 1x1 back: one pass."""
    norm = None if block.norm is None else _pointwise(program, block.norm)

    def widen(hidden: Tensor) -> Tensor:
        return F.silu(block.conv_inverted(hidden), inplace=True)

    def narrow(hidden: Tensor) -> Tensor:
        hidden, gate = hidden.chunk(2, dim=1)
        hidden = block.conv_point(hidden * F.silu(gate))
        return hidden if norm is None else norm(hidden)

    return program.add_conv(
        block.conv_depth,
        source,
        channels=block.conv_point.out_channels,
        act=widen,
        then=narrow,
        residual=source if block.residual_connection else None,
        pointwise_weights=block.conv_inverted.weight.numel() + block.conv_point.weight.numel(),
    )


def _down(program: Program, block: Any, source: int) -> int:
    side = block.factor

    def average(hidden: Tensor) -> Tensor:
        return F.pixel_unshuffle(hidden, side).unflatten(1, (-1, block.group_size)).mean(dim=2)

    options: dict[str, Any] = {}
    if block.downsample:
        options = {
            "then": lambda hidden: F.pixel_unshuffle(hidden, side),
            "moves": Rearrangement(to_channels=side),
            "channels": block.conv.out_channels * side**2,
        }
    if block.shortcut:
        options |= {"residual": source, "shortcut": average, "shortcut_moves": Rearrangement(to_channels=side)}
    return program.add_conv(block.conv, source, **options)


def _up(program: Program, block: Any, source: int, *, act: Pointwise | None = None) -> int:
    side = block.factor

    def repeat(hidden: Tensor) -> Tensor:
        return F.pixel_shuffle(hidden.repeat_interleave(block.repeats, dim=1), side)

    options: dict[str, Any] = {"act": act}
    if block.interpolate:
        require_plain(block.interpolation_mode == "nearest", "an upsampler of another kind")
        options["upsample"] = side
    else:
        options |= {
            "then": lambda hidden: F.pixel_shuffle(hidden, side),
            "moves": Rearrangement(to_pixels=side),
            "channels": block.conv.out_channels // side**2,
        }
    if block.shortcut:
        options |= {"residual": source, "shortcut": repeat, "shortcut_moves": Rearrangement(to_pixels=side)}
    return program.add_conv(block.conv, source, **options)


KINDS: dict[type[nn.Module], Callable[[Program, Any, int], int]] = {
    ResBlock: _res_block,
    EfficientViTBlock: _vit_block,
    GLUMBConv: _gated_convolution,
    DCDownBlock2d: _down,
    DCUpBlock2d: _up,
}

AppendAll = Callable[[Program, Any, int], int]


def encoder(program: Program, network: Any, source: int, append_all: AppendAll) -> int:
    """Append the encoder of an AutoencoderDC."""
    hidden = append_all(program, [network.conv_in, *network.down_blocks], source)
    if not network.out_shortcut:
        return program.add_conv(network.conv_out, hidden)

    def average(hidden: Tensor) -> Tensor:
        return hidden.unflatten(1, (-1, network.out_shortcut_average_group_size)).mean(dim=2)

    return program.add_conv(network.conv_out, hidden, residual=hidden, shortcut=average)


def decoder(program: Program, network: Any, source: int, append_all: AppendAll) -> int:
    """Append the decoder of an AutoencoderDC."""

    def repeat(latents: Tensor) -> Tensor:
        return latents.repeat_interleave(network.in_shortcut_repeats, dim=1)

    around: dict[str, Any] = {"residual": source, "shortcut": repeat} if network.in_shortcut else {}
    hidden = program.add_conv(network.conv_in, source, **around)
    hidden = append_all(program, reversed(network.up_blocks), hidden)
    norm = _pointwise(program, network.norm_out)

    def act(hidden: Tensor) -> Tensor:
        activated: Tensor = network.conv_act(norm(hidden))
        return activated

    if isinstance(network.conv_out, DCUpBlock2d):
        return _up(program, network.conv_out, hidden, act=act)
    return program.add_conv(network.conv_out, hidden, act=act)
