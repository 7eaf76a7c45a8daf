"""A network as a list of passes over whole maps: what strips need to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Pointwise = Callable[[Tensor], Tensor]
"""What is done at each pixel by itself, to [1, C, h, W]; it may change the number of channels."""


@dataclass(frozen=True, kw_only=True)
class Rearrangement:
    """Pixels become channels, or channels pixels, in squares of a side; 1 where nothing moves."""

    to_pixels: int = 1
    to_channels: int = 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after it.

        Raises:
            ValueError: The squares don't fit in.
        """
        side = self.to_channels
        if height % side or width % side:
            raise ValueError(f"a map of {height} x {width} can't be cut into squares of {side}; take other sides")
        return height // side * self.to_pixels, width // side * self.to_pixels

    def rows_before(self, start: int, stop: int) -> tuple[int, int]:
        """The rows before it that the rows [start, stop) after it are made of."""
        return start // self.to_pixels * self.to_channels, -(-stop // self.to_pixels) * self.to_channels

    def cut(self, after: Tensor, *, start: int, stop: int) -> Tensor:
        """The rows [start, stop) of what became of `rows_before` them."""
        offset = start % self.to_pixels
        return after[:, :, offset : offset + stop - start] if self.to_pixels > 1 else after


NOTHING_MOVES = Rearrangement()


@dataclass(frozen=True, kw_only=True)
class ConvPass:
    """target = after(then(conv(upsample(act(norm(source))))) + shortcut(residual)), on maps named by their numbers."""

    source: int
    target: int
    conv: nn.Conv2d
    norm: nn.GroupNorm | None = None
    act: Pointwise | None = None
    upsample: int = 1  # nearest, by this factor
    pad: tuple[int, int, int, int]  # zeros left, right, above and below
    then: Pointwise | None = None  # with the rearrangement `moves`
    moves: Rearrangement = NOTHING_MOVES
    residual: int | None = None
    shortcut: Pointwise | None = None  # with the rearrangement `shortcut_moves`
    shortcut_moves: Rearrangement = NOTHING_MOVES
    after: Pointwise | None = None
    pointwise_weights: int = 0  # of what is done beside the convolution

    def conv_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the convolution makes, of the source's."""
        left, right, above, below = self.pad
        (kernel_h, kernel_w), (stride_h, stride_w) = self.conv.kernel_size, self.conv.stride
        return (
            (height * self.upsample + above + below - kernel_h) // stride_h + 1,
            (width * self.upsample + left + right - kernel_w) // stride_w + 1,
        )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the target, of the source's."""
        return self.moves.size(*self.conv_size(height, width))

    def input_rows(self, start: int, stop: int) -> tuple[int, int]:
        """The rows of the upsampled source under the target's rows [start, stop): may begin above 0, end below."""
        start, stop = self.moves.rows_before(start, stop)
        stride, kernel = self.conv.stride[0], self.conv.kernel_size[0]
        return start * stride - self.pad[2], (stop - 1) * stride - self.pad[2] + kernel

    def source_rows(self, start: int, stop: int, *, height: int) -> tuple[int, int]:
        """The rows of a source of this height that the target's rows [start, stop) are made of."""
        if start >= stop:
            return 0, 0
        first, last = self.input_rows(start, stop)
        last = min(last, height * self.upsample)
        return max(first, 0) // self.upsample, -(-last // self.upsample)

    def reads(self, start: int, stop: int, *, height: int) -> dict[int, tuple[int, int]]:
        """The rows of each map that the target's rows [start, stop) are made of, for a source of this height."""
        rows = {self.source: self.source_rows(start, stop, height=height)}
        if self.residual is not None:
            first, last = self.shortcut_moves.rows_before(start, stop)
            beside = rows.get(self.residual, (first, last))
            rows[self.residual] = min(first, beside[0]), max(last, beside[1])
        return rows


@dataclass(frozen=True, kw_only=True)
class AttentionPass:
    """target = source + attention over all positions of norm(source)."""

    source: int
    target: int
    attention: Any
    residual: None = None

    @property
    def norm(self) -> nn.GroupNorm:
        """The group norm before queries, keys and values."""
        norm: nn.GroupNorm = self.attention.group_norm
        return norm

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """As it was."""
        return height, width


@dataclass(frozen=True, kw_only=True)
class LinearAttentionPass:
    """target = source + linear attention over all positions, of queries, keys and values at several scales.

    A scale beyond the first is a convolution of the others' queries, keys and values.
    """

    source: int
    target: int
    attention: Any
    norm_out: Pointwise
    norm: None = None
    residual: None = None

    @property
    def halo(self) -> int:
        """How many rows above and below a position its queries, keys and values depend on."""
        return max((scale.proj_in.kernel_size[0] // 2 for scale in self.attention.to_qkv_multiscale), default=0)

    def source_rows(self, start: int, stop: int, *, height: int) -> tuple[int, int]:
        """The rows of the source that the target's rows [start, stop) are made of, once all positions were seen."""
        return (0, 0) if start >= stop else (max(start - self.halo, 0), min(stop + self.halo, height))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """As it was."""
        return height, width


Pass = ConvPass | AttentionPass | LinearAttentionPass


@dataclass(kw_only=True)
class Program:
    """Passes in their order. Map 0 is the input, the last pass's target the output."""

    passes: list[Pass] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)  # of each map
    batch_norms: list[nn.Module] = field(default_factory=list)  # which are pointwise in eval mode alone

    def last_uses(self) -> dict[int, int]:
        """For each map, the number of the last pass that reads it."""
        uses: dict[int, int] = {}
        for number, step in enumerate(self.passes):
            uses[step.source] = number
            if step.residual is not None:
                uses[step.residual] = number
        return uses

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of each map, for an input of this size.

        Raises:
            ValueError: The network doesn't take such a size.
        """
        sizes = {0: (height, width)}
        for step in self.passes:
            sizes[step.target] = step.output_size(*sizes[step.source])
            if isinstance(step, ConvPass) and step.residual is not None:
                beside = step.shortcut_moves.size(*sizes[step.residual])
                assert beside == sizes[step.target], "a shortcut of another size than what it goes around"
        return [sizes[number] for number in range(len(self.channels))]

    def add_map(self, channels: int) -> int:
        """Append a map, and return its number."""
        self.channels.append(channels)
        return len(self.channels) - 1

    def add_conv(
        self,
        conv: nn.Conv2d,
        source: int,
        *,
        pad: tuple[int, int, int, int] | None = None,
        channels: int | None = None,
        **options: Any,
    ) -> int:
        """Append a convolution, by default with its own padding and channels, and return the number of its target.

        Raises:
            ValueError: It is none that strips are known for.
        """
        require_plain(conv.padding_mode == "zeros" and conv.dilation == (1, 1), "such a convolution")
        if isinstance(conv.padding, str):
            raise ValueError("a convolution whose padding is a name can't be run in strips")
        height, width = conv.padding
        target = self.add_map(channels or conv.out_channels)
        pad = pad or (int(width), int(width), int(height), int(height))
        self.passes.append(ConvPass(source=source, target=target, conv=conv, pad=pad, **options))
        return target


def require_plain(condition: bool, what: str) -> None:
    """Raise a ValueError where a network has what strips are not known for."""
    if not condition:
        raise ValueError(f"{what} can't be run in strips")
