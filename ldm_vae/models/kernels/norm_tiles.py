"""Parts of the Triton kernels of group norm: where the tiles of a map lie, and what they hold.

ROWS positions of GROUPS groups are a tile, [ROWS, GROUPS · WIDTH], where WIDTH is the next power of two from the
channels of a group on. Triton compiles these functions into the kernels of `norm_kernels.py` that call them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channels_of_block(
    block, NUM_GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr
):
    """The channel at each place of a block of groups, its group, and whether there is such a channel."""
    place = tl.arange(0, GROUPS * WIDTH)
    if PER_GROUP == WIDTH:  # said apart, so that the compiler sees that channels lie in a row
        channel = block * GROUPS * WIDTH + place
        group = channel // WIDTH
        there = channel < NUM_GROUPS * PER_GROUP
    else:
        group = block * GROUPS + place // WIDTH
        within = place % WIDTH
        channel = group * PER_GROUP + within
        there = (group < NUM_GROUPS) & (within < PER_GROUP)
    return channel, group, there


@triton.jit
def over_group(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """The sum over each group, at each of its places."""
    sums = tl.sum(tl.reshape(values, [GROUPS, WIDTH]), axis=1)
    return tl.reshape(tl.broadcast_to(sums[:, None], [GROUPS, WIDTH]), [GROUPS * WIDTH])


@triton.jit
def tile_of_map(number, row, there, image, num_positions, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """Where a tile of an image's map begins in memory, which of its positions there are, and which of its places."""
    start = number * ROWS
    first = (image.to(tl.int64) * num_positions + start) * CHANNELS
    valid = start + row < num_positions
    return first, valid, valid[:, None] & there[None, :]


@triton.jit
def share_of_map(part, rows_of_part, num_positions):
    """How much of an image's map each part is."""
    rows = tl.maximum(tl.minimum(num_positions - part * rows_of_part, rows_of_part), 0)
    return rows.to(tl.float32) / num_positions


@triton.jit
def load_channels(weight, bias, mean, rstd, channel, of_image, there):
    """Mean, 1 / std, weight and bias of the channels of a block, of one image."""
    centre = tl.load(mean + of_image, mask=there, other=0.0)
    scale = tl.load(rstd + of_image, mask=there, other=0.0)
    gain = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)
    return centre, scale, gain, shift


@triton.jit
def load_normalised(hidden, mask, centre, scale):
    """The values of a tile, normalised: x̂ = (x - mean) · rstd."""
    values = tl.load(hidden, mask=mask, other=0.0).to(tl.float32)
    return (values - centre[None, :]) * scale[None, :]


@triton.jit
def load_gradient(gradient, mask, normalised, gain, shift, SILU: tl.constexpr):
    """The gradient of a tile at what SILU takes, of the gradient at its result."""
    upstream = tl.load(gradient, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        taken = normalised * gain[None, :] + shift[None, :]
        gate = tl.sigmoid(taken)
        upstream = upstream * gate * (1.0 + taken * (1.0 - gate))
    return upstream
