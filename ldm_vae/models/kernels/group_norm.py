"""Group norm and SiLU in one pass over channels_last maps, forward and backward, in Triton.

A map is [B, P, C] in memory: images, positions, channels, the channels innermost. Statistics are float32: at each
place of a tile about its first value, and by the merge of Chan, Golub and LeVeque (1983) over places and tiles. So a
large common offset costs no digits of the variance. How a map is cut into tiles depends on its shape alone, not on the
number of images, and nothing is added up by atomics: the same image always gives the same bits.

The forward reads a map twice (statistics, then values; the tiles that were read last come first, since a cache may
still hold them) and writes it once. The backward reads map and gradient twice and writes once. It keeps the map alone:
the norm's result, which a SiLU of its own would keep, is computed again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ldm_vae.models.kernels import norm_kernels

WIDEST = 1024  # channels of a tile, rounded up to a power of two for each group
MOST_PARTS = 512  # parts of an image's map, each with statistics of its own
NUM_WARPS = 4
BLOCK = 2048  # elements that a program adds


class _Size(NamedTuple):
    """How much one program takes; the fastest of ten that were tried on an H200."""

    tile: int  # elements of a map in registers
    tiles: int  # of a part, taken in turn


FORWARD, BACKWARD = _Size(tile=8192, tiles=4), _Size(tile=4096, tiles=8)


class _Cut(NamedTuple):
    """How a map [B, P, C] is cut into parts and tiles."""

    images: int
    positions: int
    groups: int  # of the norm
    per_group: int  # channels of a group
    width: int  # the same, rounded up to a power of two
    rows: int  # positions of a tile
    groups_of_tile: int
    tiles: int  # of a part

    @classmethod
    def of(cls, hidden: Tensor, num_groups: int, size: _Size) -> _Cut:
        images, channels = hidden.shape[:2]
        positions = hidden[0, 0].numel()
        per_group = channels // num_groups
        width = triton.next_power_of_2(per_group)
        groups_of_tile = min(triton.next_power_of_2(num_groups), max(1, WIDEST // width))
        rows = max(1, size.tile // (groups_of_tile * width))
        all_tiles = triton.cdiv(positions, rows)
        tiles = max(min(size.tiles, all_tiles), triton.next_power_of_2(triton.cdiv(all_tiles, MOST_PARTS)))
        return cls(images, positions, num_groups, per_group, width, rows, groups_of_tile, tiles)

    @property
    def parts(self) -> int:
        return int(triton.cdiv(self.positions, self.rows * self.tiles))

    @property
    def blocks(self) -> int:
        return int(triton.cdiv(self.groups, self.groups_of_tile))

    @property
    def of_norm(self) -> dict[str, int]:
        return {
            "NUM_GROUPS": self.groups, "PER_GROUP": self.per_group, "GROUPS": self.groups_of_tile, "WIDTH": self.width,
        }  # fmt: skip

    @property
    def constants(self) -> dict[str, int]:
        return {**self.of_norm, "TILES": self.tiles, "ROWS": self.rows}

    def chunks(self, parts: int) -> int:
        """So many parts at once, how often; a power of two, so that few kernels are compiled."""
        return int(triton.next_power_of_2(triton.cdiv(self.parts, parts)))


def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, silu: bool, offset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the norm of `hidden`, with SiLU or without, and each group's mean and 1 / std, float32 [B, groups].

    Args:
        hidden: [B, C, ...] in float32, float16 or bfloat16; copied where it isn't channels_last.
        weight: [C].
        bias: [C].
        num_groups: Groups of the norm, which divide C.
        eps: Added to the variance.
        silu: Whether SiLU follows.
        offset: [C], added to `hidden` before: the bias that a convolution left out.
    """
    hidden = channels_innermost(hidden)
    cut = _Cut.of(hidden, num_groups, FORWARD)
    shifted, offset = offset is not None, weight if offset is None else offset
    output = torch.empty_like(hidden)
    mean, rstd = (hidden.new_empty(cut.images, num_groups, dtype=torch.float32) for _ in range(2))
    partial = hidden.new_empty(2, cut.images, cut.parts, num_groups, dtype=torch.float32)
    grid, constants = (cut.parts, cut.images, cut.blocks), cut.constants
    with _on_device(hidden):
        norm_kernels.statistics[grid](
            hidden, offset, partial[0], partial[1], cut.positions,
            SHIFTED=shifted, num_warps=NUM_WARPS, **constants,
        )  # fmt: skip
        few = min(8, triton.next_power_of_2(num_groups))
        norm_kernels.merge_statistics[(cut.images, triton.cdiv(num_groups, few))](
            partial[0], partial[1], mean, rstd, cut.positions, cut.rows * cut.tiles, cut.parts, eps,
            NUM_GROUPS=num_groups, PER_GROUP=cut.per_group, CHUNKS=cut.chunks(64), PARTS=64, GROUPS=few, num_warps=4,
        )  # fmt: skip
        norm_kernels.normalise[grid](
            hidden, offset, weight, bias, mean, rstd, output, cut.positions,
            SHIFTED=shifted, SILU=silu, num_warps=NUM_WARPS, **constants,
        )  # fmt: skip
    return output, mean, rstd


def backward(
    gradient: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients at `hidden`, in its type, and at weight and bias, in theirs.

    Args:
        gradient: At the result, of its shape.
        hidden: As `forward` took it, like all others.
        weight: [C].
        bias: [C].
        mean: As `forward` returned it.
        rstd: As `forward` returned it.
        silu: Whether SiLU follows.
    """
    hidden, gradient = channels_innermost(hidden), channels_innermost(gradient)
    cut = _Cut.of(hidden, mean.shape[1], BACKWARD)
    output = torch.empty_like(hidden)
    channels = hidden.shape[1]
    partial = hidden.new_empty(cut.images, cut.parts, 2, channels, dtype=torch.float32)
    of_image = hidden.new_empty(cut.images, 2, channels, dtype=torch.float32)
    of_groups = hidden.new_empty(cut.images, 2, cut.groups, dtype=torch.float32)
    grid, constants = (cut.parts, cut.images, cut.blocks), cut.constants
    with _on_device(hidden):
        norm_kernels.channel_sums[grid](
            gradient, hidden, weight, bias, mean, rstd, partial, cut.positions,
            SILU=silu, num_warps=NUM_WARPS, **constants,
        )  # fmt: skip
        few = {**cut.of_norm, "GROUPS": min(cut.groups_of_tile, max(1, 64 // cut.width))}
        norm_kernels.merge_sums[(cut.images, 2, triton.cdiv(cut.groups, few["GROUPS"]))](
            partial,
            weight,
            of_image,
            of_groups,
            cut.positions,
            cut.parts,
            CHUNKS=cut.chunks(32),
            PARTS=32,
            num_warps=4,
            **few,
        )
        norm_kernels.hidden_gradient[grid](
            gradient, hidden, weight, bias, mean, rstd, of_groups, output, cut.positions,
            SILU=silu, num_warps=NUM_WARPS, **constants,
        )  # fmt: skip
    return output, of_image[:, 1].sum(0).to(weight.dtype), of_image[:, 0].sum(0).to(bias.dtype)


def add(hidden: Tensor, bias: Tensor, shortcut: Tensor | None) -> Tensor:
    """Return `hidden` [B, C, ...] plus `bias` [C], plus `shortcut` of its shape, written over `hidden`.

    Args:
        hidden: Channels_last, or it is copied.
        bias: What a convolution left out.
        shortcut: A second map; None: there is none.
    """
    hidden = channels_innermost(hidden)
    shortcut = None if shortcut is None else channels_innermost(shortcut)
    with _on_device(hidden):
        norm_kernels.add[(triton.cdiv(hidden.numel(), BLOCK),)](
            hidden, bias, hidden if shortcut is None else shortcut, hidden, hidden.numel(),
            HAS_SHORTCUT=shortcut is not None, CHANNELS=hidden.shape[1], BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return hidden


def channels_innermost(hidden: Tensor) -> Tensor:
    """Return a map [B, C, ...] with its channels innermost in memory; itself where they are."""
    return hidden.movedim(1, -1).contiguous().movedim(-1, 1)


def _on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the current one, on which Triton launches; no other device needs that."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
