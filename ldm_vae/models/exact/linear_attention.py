"""AutoencoderDC's attention over all positions of a map that is never whole: its sums come strip by strip."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class LinearScores:
    """Sums over all positions of value times key, and of keys, of each head: [heads, d + 1, d].

    A query's result is the sums times the query; the last row is what it is divided by. The sums are of ReLU'd keys in
    float32, as diffusers has them, and strips' sums are added in float64. For maps of few pixels diffusers multiplies
    in another order, with the same result up to rounding.
    """

    def __init__(self, *, device: torch.device):
        self.wide = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums: Tensor | None = None

    def add(self, key: Tensor, value: Tensor) -> None:
        """Add positions: [heads, d, n] each."""
        sums = (F.pad(value, (0, 0, 0, 1), value=1.0) @ key.transpose(1, 2)).to(self.wide)
        self.sums = sums if self.sums is None else self.sums + sums

    def reduce(self, group: dist.ProcessGroup | None) -> None:
        """Add up what all processes of `group` have seen."""
        assert self.sums is not None
        if group is not None:
            dist.all_reduce(self.sums, group=group)

    def of(self, query: Tensor, *, eps: float) -> Tensor:
        """Return the attention's result [heads, d, n], float32, for queries [heads, d, n]."""
        assert self.sums is not None
        mixed = self.sums.float() @ query
        return mixed[:, :-1] / (mixed[:, -1:] + eps)


def heads_at_all_scales(
    attention: Any, rows: Tensor, *, top: int, start: int, stop: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of the rows [start, stop), float32 [heads, d, n] each; the first two ReLU'd.

    Args:
        attention: A SanaMultiscaleLinearAttention.
        rows: [1, C, h, W], the map's rows from `top` on, with those that the scales' convolutions need.
        top: Number of the first.
        start: The first row that is wanted.
        stop: The row after the last.
        height: Of the whole map.
    """
    hidden = rows.movedim(1, -1)
    first = torch.cat([attention.to_q(hidden), attention.to_k(hidden), attention.to_v(hidden)], dim=3).movedim(-1, 1)
    scales = [first[:, :, start - top : stop - top]]
    for scale in attention.to_qkv_multiscale:
        conv = scale.proj_in
        halo = conv.kernel_size[0] // 2
        above, below = max(0, halo - start), max(0, stop + halo - height)
        near = first[:, :, start - halo + above - top : stop + halo - below - top]
        near = F.pad(near, (0, 0, above, below)) if above or below else near
        near = F.conv2d(near, conv.weight, conv.bias, padding=(0, conv.padding[1]), groups=conv.groups)
        scales.append(scale.proj_out(near))
    heads = torch.cat(scales, dim=1).float()
    query, key, value = heads.reshape(-1, 3 * attention.attention_head_dim, heads[0, 0].numel()).chunk(3, dim=1)
    return attention.nonlinearity(query), attention.nonlinearity(key), value
