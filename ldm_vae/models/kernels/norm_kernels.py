"""Triton kernels of group norm and SiLU over channels_last maps; `group_norm.py` launches them.

Arguments are pointers and numbers, for which Triton's compiler allows no annotations but its own. A part of an image's
map is TILES tiles, as `norm_tiles.py` has them; CHUNKS · PARTS parts are at least all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_vae.models.kernels.norm_tiles import (
    channels_of_block,
    load_channels,
    load_gradient,
    load_normalised,
    over_group,
    share_of_map,
    tile_of_map,
)


@triton.jit
def statistics(
    hidden,
    offset,
    means,  # [B, parts, groups]
    deviations,  # [B, parts, groups], sums of squared deviations
    num_positions,
    SHIFTED: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write the mean and the sum of squared deviations of each group in a part of an image's map.

    Each place of a tile adds up how far its values are from its first one. That is one of those which the mean is of,
    so what it is off by is no more than they vary, and the difference below loses some bits at the most.
    """
    part, image, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, group, there = channels_of_block(block, NUM_GROUPS, PER_GROUP, GROUPS, WIDTH)
    CHANNELS: tl.constexpr = NUM_GROUPS * PER_GROUP
    row = tl.arange(0, ROWS)
    place = row[:, None] * CHANNELS + channel[None, :]
    first, valid, mask = tile_of_map(part * TILES, row, there, image, num_positions, CHANNELS, ROWS)
    reference = tl.load(hidden + first + place, mask=mask, other=0.0).to(tl.float32)
    seen = tl.where(valid, 1.0, 0.0)
    total = tl.zeros([ROWS, GROUPS * WIDTH], tl.float32)
    squares = tl.zeros([ROWS, GROUPS * WIDTH], tl.float32)
    for tile in range(1, TILES):
        first, valid, mask = tile_of_map(part * TILES + tile, row, there, image, num_positions, CHANNELS, ROWS)
        values = tl.load(hidden + first + place, mask=mask, other=0.0).to(tl.float32)
        away = tl.where(mask, values - reference, 0.0)
        seen += tl.where(valid, 1.0, 0.0)
        total += away
        squares += away * away
    count = tl.sum(seen, axis=0)
    shift = total * (1.0 / tl.maximum(seen, 1.0))[:, None]
    squares = tl.maximum(squares - total * shift, 0.0)
    mean = reference + shift
    channel_mean = tl.sum(mean * (seen / count)[:, None], axis=0)
    apart = mean - channel_mean[None, :]
    squares = tl.sum(squares + apart * apart * seen[:, None], axis=0)
    if SHIFTED:
        channel_mean += tl.load(offset + channel, mask=there, other=0.0).to(tl.float32)
    group_mean = over_group(channel_mean, GROUPS, WIDTH) / PER_GROUP
    away = tl.where(there, channel_mean - group_mean, 0.0)
    squares = over_group(tl.where(there, squares, 0.0) + away * away * count, GROUPS, WIDTH)
    to = (image * tl.num_programs(0) + part) * NUM_GROUPS + group
    first_of_group = there & (tl.arange(0, GROUPS * WIDTH) % WIDTH == 0)
    tl.store(means + to, group_mean, mask=first_of_group)
    tl.store(deviations + to, squares, mask=first_of_group)


@triton.jit
def merge_statistics(
    means,
    deviations,
    mean,  # [B, groups]
    rstd,  # [B, groups]
    num_positions,
    rows_of_part,
    num_parts,
    eps,
    NUM_GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Write the mean and 1 / std of each group of an image, of those of its parts."""
    image, block = tl.program_id(0), tl.program_id(1)
    group = block * GROUPS + tl.arange(0, GROUPS)
    base = image * num_parts * NUM_GROUPS
    total = tl.zeros([GROUPS], tl.float32)
    for chunk in range(CHUNKS):
        part = chunk * PARTS + tl.arange(0, PARTS)
        share = share_of_map(part, rows_of_part, num_positions)
        mask = (part < num_parts)[:, None] & (group < NUM_GROUPS)[None, :]
        value = tl.load(means + base + part[:, None] * NUM_GROUPS + group[None, :], mask=mask, other=0.0)
        total += tl.sum(value * share[:, None], axis=0)
    squares = tl.zeros([GROUPS], tl.float32)
    for chunk in range(CHUNKS):
        part = chunk * PARTS + tl.arange(0, PARTS)
        share = share_of_map(part, rows_of_part, num_positions)
        mask = (part < num_parts)[:, None] & (group < NUM_GROUPS)[None, :]
        at = base + part[:, None] * NUM_GROUPS + group[None, :]
        apart = tl.where(mask, tl.load(means + at, mask=mask, other=0.0) - total[None, :], 0.0)
        own = tl.load(deviations + at, mask=mask, other=0.0) / (num_positions * PER_GROUP)
        squares += tl.sum(own + apart * apart * share[:, None], axis=0)
    to = image * NUM_GROUPS + group
    tl.store(mean + to, total, mask=group < NUM_GROUPS)
    tl.store(rstd + to, 1.0 / tl.sqrt(squares + eps), mask=group < NUM_GROUPS)


@triton.jit
def normalise(
    hidden,
    offset,
    weight,
    bias,
    mean,
    rstd,
    output,
    num_positions,
    SHIFTED: tl.constexpr,
    SILU: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write weight · (x + offset - mean) / std + bias, through SiLU where it follows."""
    part = tl.num_programs(0) - 1 - tl.program_id(0)
    image, block = tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(2)
    channel, group, there = channels_of_block(block, NUM_GROUPS, PER_GROUP, GROUPS, WIDTH)
    CHANNELS: tl.constexpr = NUM_GROUPS * PER_GROUP
    row = tl.arange(0, ROWS)
    place = row[:, None] * CHANNELS + channel[None, :]
    centre, scale, gain, shift = load_channels(weight, bias, mean, rstd, channel, image * NUM_GROUPS + group, there)
    if SHIFTED:
        centre -= tl.load(offset + channel, mask=there, other=0.0).to(tl.float32)
    factor = scale * gain
    for tile in range(TILES):
        first, _, mask = tile_of_map(part * TILES + tile, row, there, image, num_positions, CHANNELS, ROWS)
        values = tl.load(hidden + first + place, mask=mask, other=0.0).to(tl.float32)
        values = (values - centre[None, :]) * factor[None, :] + shift[None, :]
        if SILU:
            values = values * tl.sigmoid(values)
        tl.store(output + first + place, values.to(output.dtype.element_ty), mask=mask)


@triton.jit
def add(
    hidden,
    bias,
    shortcut,
    output,
    num_elements,
    HAS_SHORTCUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the map plus its channels' bias, plus a second map where there is one."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < num_elements
    values = tl.load(hidden + place, mask=mask, other=0.0).to(tl.float32)
    values += tl.load(bias + place % CHANNELS, mask=mask, other=0.0).to(tl.float32)
    if HAS_SHORTCUT:
        values += tl.load(shortcut + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + place, values.to(output.dtype.element_ty), mask=mask)


@triton.jit
def channel_sums(
    gradient,
    hidden,
    weight,
    bias,
    mean,
    rstd,
    sums,  # [B, parts, 2, C]: of the gradient, and of the gradient times the normalised values
    num_positions,
    SILU: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write the sums over a part that the gradients of weight, bias and map are made of."""
    part, image, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, group, there = channels_of_block(block, NUM_GROUPS, PER_GROUP, GROUPS, WIDTH)
    CHANNELS: tl.constexpr = NUM_GROUPS * PER_GROUP
    row = tl.arange(0, ROWS)
    place = row[:, None] * CHANNELS + channel[None, :]
    centre, scale, gain, shift = load_channels(weight, bias, mean, rstd, channel, image * NUM_GROUPS + group, there)
    plain = tl.zeros([ROWS, GROUPS * WIDTH], tl.float32)
    weighted = tl.zeros([ROWS, GROUPS * WIDTH], tl.float32)
    for tile in range(TILES):
        first, _, mask = tile_of_map(part * TILES + tile, row, there, image, num_positions, CHANNELS, ROWS)
        normalised = load_normalised(hidden + first + place, mask, centre, scale)
        upstream = load_gradient(gradient + first + place, mask, normalised, gain, shift, SILU)
        plain += upstream
        weighted += upstream * normalised
    to = (image * tl.num_programs(0) + part) * 2 * CHANNELS + channel
    tl.store(sums + to, tl.sum(plain, axis=0), mask=there)
    tl.store(sums + to + CHANNELS, tl.sum(weighted, axis=0), mask=there)


@triton.jit
def merge_sums(
    sums,
    weight,
    of_image,  # [B, 2, C], the sums over the parts
    of_groups,  # [B, 2, groups], the means over each group of the sums times the weight
    num_positions,
    num_parts,
    NUM_GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Add up the parts' sums, and write what they are over each group."""
    image, kind, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, group, there = channels_of_block(block, NUM_GROUPS, PER_GROUP, GROUPS, WIDTH)
    CHANNELS: tl.constexpr = NUM_GROUPS * PER_GROUP
    total = tl.zeros([GROUPS * WIDTH], tl.float32)
    for chunk in range(CHUNKS):
        part = chunk * PARTS + tl.arange(0, PARTS)
        at = ((image * num_parts + part) * 2 + kind)[:, None] * CHANNELS + channel[None, :]
        mask = (part < num_parts)[:, None] & there[None, :]
        total += tl.sum(tl.load(sums + at, mask=mask, other=0.0), axis=0)
    tl.store(of_image + (image * 2 + kind) * CHANNELS + channel, total, mask=there)
    gain = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32)
    mean = over_group(total * gain, GROUPS, WIDTH) / (num_positions * PER_GROUP)
    first_of_group = there & (tl.arange(0, GROUPS * WIDTH) % WIDTH == 0)
    tl.store(of_groups + (image * 2 + kind) * NUM_GROUPS + group, mean, mask=first_of_group)


@triton.jit
def hidden_gradient(
    gradient,
    hidden,
    weight,
    bias,
    mean,
    rstd,
    of_groups,
    output,
    num_positions,
    SILU: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write rstd·(γg - mean(γg) - x̂·mean(γg·x̂)), where x̂ = (x - mean)·rstd and means are over a group."""
    part = tl.num_programs(0) - 1 - tl.program_id(0)
    image, block = tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(2)
    channel, group, there = channels_of_block(block, NUM_GROUPS, PER_GROUP, GROUPS, WIDTH)
    CHANNELS: tl.constexpr = NUM_GROUPS * PER_GROUP
    row = tl.arange(0, ROWS)
    place = row[:, None] * CHANNELS + channel[None, :]
    centre, scale, gain, shift = load_channels(weight, bias, mean, rstd, channel, image * NUM_GROUPS + group, there)
    plain = tl.load(of_groups + image * 2 * NUM_GROUPS + group, mask=there, other=0.0)
    weighted = tl.load(of_groups + (image * 2 + 1) * NUM_GROUPS + group, mask=there, other=0.0)
    for tile in range(TILES):
        first, _, mask = tile_of_map(part * TILES + tile, row, there, image, num_positions, CHANNELS, ROWS)
        normalised = load_normalised(hidden + first + place, mask, centre, scale)
        upstream = load_gradient(gradient + first + place, mask, normalised, gain, shift, SILU) * gain[None, :]
        result = (upstream - plain[None, :] - normalised * weighted[None, :]) * scale[None, :]
        tl.store(output + first + place, result.to(output.dtype.element_ty), mask=mask)
