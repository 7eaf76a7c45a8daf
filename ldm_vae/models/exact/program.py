"""A network as a list of passes over whole maps: what strips need to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
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


@dataclass(frozen=True, kw_only=True)
class ConvPass:
    """target = after(conv(upsample(act(norm(source))))) + shortcut(residual), on maps named by their numbers."""

    source: int
    target: int
    conv: nn.Conv2d
    norm: nn.GroupNorm | None = None
    act: Callable[[Tensor], Tensor] | None = None
    upsample: int = 1  # nearest, by this factor
    pad: tuple[int, int, int, int]  # zeros left, right, above and below
    residual: int | None = None
    shortcut: nn.Conv2d | None = None
    after: Callable[[Tensor], Tensor] | None = None

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the target, of the source's."""
        left, right, above, below = self.pad
        (kernel_h, kernel_w), (stride_h, stride_w) = self.conv.kernel_size, self.conv.stride
        return (
            (height * self.upsample + above + below - kernel_h) // stride_h + 1,
            (width * self.upsample + left + right - kernel_w) // stride_w + 1,
        )

    def input_rows(self, start: int, stop: int) -> tuple[int, int]:
        """The rows of the upsampled source under the target's rows [start, stop): may begin above 0, end below."""
        stride, kernel = self.conv.stride[0], self.conv.kernel_size[0]
        return start * stride - self.pad[2], (stop - 1) * stride - self.pad[2] + kernel

    def source_rows(self, start: int, stop: int, *, height: int) -> tuple[int, int]:
        """The rows of a source of this height that the target's rows [start, stop) are made of."""
        if start >= stop:
            return 0, 0
        first, last = self.input_rows(start, stop)
        last = min(last, height * self.upsample)
        return max(first, 0) // self.upsample, -(-last // self.upsample)


@dataclass(frozen=True, kw_only=True)
class AttentionPass:
    """target = source + attention over all positions of norm(source)."""

    source: int
    target: int
    attention: Any

    @property
    def norm(self) -> nn.GroupNorm:
        """The group norm before queries, keys and values."""
        norm: nn.GroupNorm = self.attention.group_norm
        return norm

    @property
    def residual(self) -> None:
        """No map beside the source."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """As it was."""
        return height, width


Pass = ConvPass | AttentionPass


@dataclass(kw_only=True)
class Program:
    """Passes in their order. Map 0 is the input, the last pass's target the output."""

    passes: list[Pass] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)  # of each map

    def last_uses(self) -> dict[int, int]:
        """For each map, the number of the last pass that reads it."""
        uses: dict[int, int] = {}
        for number, step in enumerate(self.passes):
            uses[step.source] = number
            if step.residual is not None:
                uses[step.residual] = number
        return uses

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of each map, for an input of this size."""
        sizes = {0: (height, width)}
        for step in self.passes:
            sizes[step.target] = step.output_size(*sizes[step.source])
        return [sizes[number] for number in range(len(self.channels))]

    def add(self, module: nn.Module, source: int) -> int:
        """Append what a module does to map `source`, and return the number of the result.

        Raises:
            ValueError: Strips are not known for one of its modules.
        """
        for kind, append in _KINDS.items():
            if isinstance(module, kind):
                return append(self, module, source)
        raise ValueError(
            f"{type(module).__name__} can't be run in strips; there are: {', '.join(kind.__name__ for kind in _KINDS)}"
        )

    def add_all(self, modules: Any, source: int) -> int:
        """Append modules one after the other."""
        for module in modules:
            source = self.add(module, source)
        return source

    def add_conv(
        self, conv: nn.Conv2d, source: int, *, pad: tuple[int, int, int, int] | None = None, **options: Any
    ) -> int:
        """Append a convolution, by default with its own padding."""
        _require(conv.padding_mode == "zeros" and conv.groups == 1 and conv.dilation == (1, 1), "such a convolution")
        if isinstance(conv.padding, str):
            raise ValueError("a convolution whose padding is a name can't be run in strips")
        height, width = conv.padding
        self.channels.append(conv.out_channels)
        target = len(self.channels) - 1
        pad = pad or (int(width), int(width), int(height), int(height))
        self.passes.append(ConvPass(source=source, target=target, conv=conv, pad=pad, **options))
        return target


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"{what} can't be run in strips")


def _residual_block(program: Program, block: Any, source: int) -> int:
    plain = block.upsample is None and block.downsample is None and block.time_emb_proj is None
    _require(
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
    )


def _attention(program: Program, attention: Any, source: int) -> int:
    plain = attention.spatial_norm is None and attention.norm_q is None and attention.group_norm is not None
    _require(plain and attention.residual_connection, "attention of another kind than these autoencoders'")
    program.channels.append(program.channels[source])
    target = len(program.channels) - 1
    program.passes.append(AttentionPass(source=source, target=target, attention=attention))
    return target


def _downsample(program: Program, block: Any, source: int) -> int:
    _require(block.norm is None and block.use_conv, "a downsampler with a norm or without a convolution")
    pad = (0, 1, 0, 1) if block.padding == 0 else None  # diffusers pads on two sides only
    return program.add_conv(block.conv, source, pad=pad)


def _upsample(program: Program, block: Any, source: int) -> int:
    _require(block.norm is None and block.use_conv and not block.use_conv_transpose, "an upsampler of another kind")
    _require(block.interpolate and block.name == "conv", "an upsampler of another kind")
    return program.add_conv(block.conv, source, upsample=2)


def _level(program: Program, level: Any, source: int) -> int:
    attentions = getattr(level, "attentions", None) or [None] * len(level.resnets)
    for block, attention in zip(level.resnets, attentions, strict=True):
        source = program.add(block, source)
        source = source if attention is None else program.add(attention, source)
    for name in ("downsamplers", "upsamplers"):
        source = program.add_all(getattr(level, name, None) or [], source)
    return source


def _middle(program: Program, block: Any, source: int) -> int:
    source = program.add(block.resnets[0], source)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        source = source if attention is None else program.add(attention, source)
        source = program.add(resnet, source)
    return source


_KINDS: dict[type[nn.Module], Callable[[Program, Any, int], int]] = {
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
}


def _encoder(program: Program, encoder: Any, source: int) -> int:
    hidden = program.add_all([encoder.conv_in, *encoder.down_blocks, encoder.mid_block], source)
    return program.add_conv(encoder.conv_out, hidden, norm=encoder.conv_norm_out, act=encoder.conv_act)


def _decoder(program: Program, decoder: Any, source: int) -> int:
    hidden = program.add_all([decoder.conv_in, decoder.mid_block, *decoder.up_blocks], source)
    return program.add_conv(decoder.conv_out, hidden, norm=decoder.conv_norm_out, act=decoder.conv_act)


_HALVES: dict[type[nn.Module], Callable[[Program, Any, int], int]] = {Encoder: _encoder, Decoder: _decoder}


def make_program(half: nn.Module) -> Program:
    """The program of an encoder or decoder.

    Raises:
        ValueError: Strips are not known for the model's class.
    """
    append = next((append for kind, append in _HALVES.items() if isinstance(half, kind)), None)
    if append is None:
        known = ", ".join(sorted(kind.__name__ for kind in _HALVES))
        raise ValueError(f"a {type(half).__name__} can't be run in strips; there are: {known}")
    first: Any = half.conv_in
    program = Program(channels=[first.in_channels])
    append(program, half, 0)
    return program
