"""How a program is cut, so that it stays within a budget of memory: decided before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ldm_vae.models.exact.maps import Tier
from ldm_vae.models.exact.program import AttentionPass, ConvPass, LinearAttentionPass, Pass, Program
from ldm_vae.models.exact.run import Layout

GIB = 2**30
STRIP_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}  # of one pass, from which larger strips are no faster
STRIP_SHARE = 0.5  # of the budget that the strips of a pass may take
RESERVE = 1.15  # what an allocator holds for what is asked of it
NORM_BYTES = 12  # of an element of an RMS norm, in float32: itself, its square and its product


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an image's way through a program takes."""

    layout: Layout | None  # None: the network runs as it is, on the whole image
    whole_bytes: int  # the most that the network holds at once when it runs as it is, beside its weights
    peak_bytes: int  # the most memory of the device that it holds as planned, beside its weights
    kept_bytes: int  # the most that lies in host memory or in a temporary file
    num_strips: int
    flops: float  # multiplications and additions
    attention_flops: float  # those of them that are attention over all positions

    def __str__(self) -> str:
        if self.layout is None:
            return f"whole: about {self.peak_bytes / GIB:.2f} GiB beside the weights, {self.flops / 1e12:.1f} TFLOP"
        where = {"host": "host memory", "disk": "a temporary file"}
        slow = next((where[tier] for tier in self.layout.tiers if tier != "device"), None)
        kept = f", {self.kept_bytes / GIB:.2f} GiB in {slow}" if slow else ""
        return (
            f"{self.num_strips} strips: about {self.peak_bytes / GIB:.2f} GiB beside the weights instead of "
            f"{self.whole_bytes / GIB:.2f}{kept}, {self.flops / 1e12:.1f} TFLOP"
        )


def make_plan(
    program: Program,
    *,
    height: int,
    width: int,
    budget_bytes: int | None,
    device: torch.device,
    input_bytes: int = 4,
    num_processes: int = 1,
    folder: str | None = None,
) -> Plan:
    """Plan the way of one image.

    Args:
        program: The passes of the network over the image.
        height: Rows of the program's input.
        width: Columns of the program's input.
        budget_bytes: Memory of the device that may be used beside the weights. With None there is no bound.
        device: Where the network runs.
        input_bytes: Bytes of an element of the input.
        num_processes: How many processes share the image. The plan is that of one of them.
        folder: Where temporary files are made. By default it is the system's folder for them.

    Raises:
        ValueError: Even strips of one row don't fit. The message says what would.
    """
    sketch = _Sketch(program, height=height, width=width, input_bytes=input_bytes, num_processes=num_processes)
    passes = range(len(program.passes))
    attentions = [number for number in passes if isinstance(program.passes[number], AttentionPass)]
    flops = {
        "flops": sum(sketch.flops(number) for number in passes),
        "attention_flops": float(sum(sketch.flops(number) for number in attentions)),
    }
    whole = int(RESERVE * sketch.whole_peak())
    if budget_bytes is None or (whole <= budget_bytes and num_processes == 1):
        return Plan(layout=None, whole_bytes=whole, peak_bytes=whole, kept_bytes=0, num_strips=0, **flops)
    slow: Tier = "host" if device.type == "cuda" else "disk"
    strip_bytes = min(STRIP_BYTES.get(device.type, 2**28), int(budget_bytes * STRIP_SHARE / RESERVE))
    while True:
        rows = [sketch.rows(number, strip_bytes) for number in passes]
        tiers = sketch.tiers(rows, budget=budget_bytes / RESERVE, slow=slow)
        peak = int(RESERVE * max(sketch.held(number, tiers, rows) for number in passes))
        if peak <= budget_bytes or max(rows) == 1:
            break
        strip_bytes //= 2
    if peak > budget_bytes:
        raise ValueError(
            f"memory_gib: {height} x {width} takes at least {_rounded_up(peak / GIB)} GiB beside the weights, but the "
            f"budget is {budget_bytes / GIB:.3g}; give that much"
        )
    return Plan(
        layout=Layout(tiers=tiers, rows=rows, folder=folder),
        whole_bytes=whole,
        peak_bytes=peak,
        kept_bytes=max(sketch.kept(number, tiers) for number in passes),
        num_strips=sum(-(-sketch.part(step.target) // n) for step, n in zip(program.passes, rows, strict=True)),
        **flops,
    )


class _Sketch:
    """Sizes of a program's maps and passes, in bytes."""

    def __init__(self, program: Program, *, height: int, width: int, input_bytes: int, num_processes: int):
        self.program, self.num_processes = program, num_processes
        self.sizes = program.sizes(height, width)
        self.last_uses = program.last_uses()
        self.element = {0: input_bytes}
        for step in program.passes:
            self.element[step.target] = _weight_bytes(step)
        self.made_by = {step.target: number for number, step in enumerate(program.passes)}

    def row(self, number: int) -> int:
        """A row of a map."""
        return self.program.channels[number] * self.sizes[number][1] * self.element[number]

    def part(self, number: int) -> int:
        """The rows of a map that a process holds."""
        return -(-self.sizes[number][0] // self.num_processes)

    def map(self, number: int) -> int:
        """A process's part of a map."""
        return self.row(number) * self.part(number)

    def alive(self, number: int) -> list[int]:
        """Maps that lie whole beside a pass: not its target, nor what it reads for the last time."""
        return [
            which
            for which in range(len(self.program.channels))
            if self.made_by.get(which, -1) < number <= self.last_uses.get(which, -1)
            and self.last_uses[which] != number
        ]

    def consumed(self, number: int) -> list[int]:
        """Maps that a pass reads for the last time: their rows go as the target's come."""
        step = self.program.passes[number]
        return [w for w in {step.source, step.residual} if w is not None and self.last_uses[w] == number]

    def strip(self, number: int, rows: int) -> int:
        """What a strip of so many rows of the target holds at once."""
        step = self.program.passes[number]
        target = self.row(step.target)
        if isinstance(step, AttentionPass):
            return 6 * target * rows  # normalised, query, mixed, projected, summed, scores
        if isinstance(step, LinearAttentionPass):
            read = (rows + 2 * step.halo) * self.row(step.source)
            return read + rows * 4 * target + self.heads(step) * (rows + 2 * step.halo)
        margin = step.conv.kernel_size[0] + step.conv.stride[0]
        rows_made = rows * step.moves.to_channels // step.moves.to_pixels + 1
        rows_in = min(rows_made * step.conv.stride[0] // step.upsample + margin, self.sizes[step.source][0])
        read = 2 * self.row(step.source) * rows_in  # as read, and normalised
        if step.upsample > 1 or step.conv.padding[0] == 0:
            read += self.taken(step) * rows_in
        elif step.conv.in_channels > self.program.channels[step.source]:
            read += 2 * self.taken(step) * rows_in
        residual = 0 if step.residual is None else 2 * rows * max(self.beside(step), target)
        return read + residual + target * rows + self.made(step) * rows_made + self.then(step) * rows

    def taken(self, step: ConvPass) -> int:
        """What a convolution takes for a row of its source."""
        width = self.sizes[step.source][1] * step.upsample**2
        return width * step.conv.in_channels * self.element[step.target]

    def made(self, step: ConvPass) -> int:
        """A row of what a convolution makes."""
        _, width = step.conv_size(*self.sizes[step.source])
        return width * step.conv.out_channels * self.element[step.target]

    def then(self, step: ConvPass) -> int:
        """What is held of a row of the target while it is made of the convolution's result."""
        if step.then is None:
            return 0
        rows_made = step.moves.to_channels / step.moves.to_pixels
        elements = self.sizes[step.target][1] * self.program.channels[step.target]
        return int(rows_made * self.made(step)) + NORM_BYTES * elements

    def beside(self, step: ConvPass) -> int:
        """What is read of the residual for a row of the target."""
        assert step.residual is not None
        moves = step.shortcut_moves
        return -(-self.row(step.residual) * moves.to_channels // moves.to_pixels)

    def heads(self, step: LinearAttentionPass) -> int:
        """Queries, keys and values of a row at all scales: as projected and put together, in float32, ReLU'd."""
        attention = step.attention
        elements = 3 * attention.to_q.out_features * (1 + len(attention.to_qkv_multiscale))
        return self.sizes[step.source][1] * elements * (4 * self.element[step.target] + 12)

    def fixed(self, number: int) -> int:
        """What a pass holds beside strips: keys and values of all positions."""
        step = self.program.passes[number]
        if not isinstance(step, AttentionPass):
            return 0
        copies = 2 if self.num_processes == 1 else 3  # one more while the processes' parts are put together
        return copies * self.row(step.target) * self.sizes[step.target][0]

    def rows(self, number: int, budget: int) -> int:
        """Rows of a pass's strips, of at most `budget` bytes, and at least one."""
        height = self.part(self.program.passes[number].target)
        base, more = self.strip(number, 1), self.strip(number, 9)
        each = max(1.0, (more - base) / 8)
        return max(1, min(height, 1 + int((budget - base) / each)))

    def held(self, number: int, tiers: list[Tier], rows: list[int]) -> int:
        """The most that a pass holds on the device."""
        target = self.program.passes[number].target
        on_device = [w for w in self.alive(number) if tiers[w] == "device"]
        consumed = sum(self.map(w) for w in self.consumed(number) if tiers[w] == "device")
        # a map's strips go one by one, and one more of each is held than is needed
        slack = sum(self.row(w) * rows[self.made_by[w]] for w in self.consumed(number) if w in self.made_by)
        written = self.map(target) if tiers[target] == "device" else 0
        beside = sum(self.map(w) for w in on_device) + self.fixed(number)
        return beside + max(consumed, written) + slack + self.strip(number, rows[number])

    def kept(self, number: int, tiers: list[Tier]) -> int:
        """What lies on the slow tier during a pass."""
        touched = [*self.alive(number), *self.consumed(number), self.program.passes[number].target]
        return sum(self.map(w) for w in touched if tiers[w] != "device")

    def tiers(self, rows: list[int], *, budget: float, slow: Tier) -> list[Tier]:
        """The tier of each map: on the device but for the largest ones, as many as the budget asks for."""
        tiers: list[Tier] = ["device"] * len(self.program.channels)
        last = self.program.passes[-1].target
        for number, step in enumerate(self.program.passes):
            while self.held(number, tiers, rows) > budget:
                present = {*self.alive(number), *self.consumed(number), step.target} - {0, last}
                movable = [which for which in present if tiers[which] == "device"]
                if not movable:
                    break
                tiers[max(movable, key=self.map)] = slow
        return tiers

    def whole_peak(self) -> int:
        """Return the most bytes that the network holds when it runs as it is.

        They are what is alive, a normalised or upsampled copy of the source, and the target.
        """
        peaks = []
        for number, step in enumerate(self.program.passes):
            alive = sum(self.map(which) for which in (*self.alive(number), *self.consumed(number)))
            if isinstance(step, LinearAttentionPass):
                copies = self.heads(step) * self.part(step.source)
            elif isinstance(step, AttentionPass):
                copies = self.fixed(number)
            else:
                changed = step.upsample > 1 or step.norm is not None or step.act is not None
                copies = self.taken(step) * self.part(step.source) if changed else 0
                if step.then is not None:
                    copies += self.map(step.target)
                    copies += self.then(step) * self.part(step.target)
            peaks.append(alive + copies + self.map(step.target))
        return max(peaks)

    def flops(self, number: int) -> float:
        """Multiplications and additions of a pass."""
        step = self.program.passes[number]
        height, width = self.sizes[step.target]
        positions = float(height * width)
        if isinstance(step, ConvPass):
            height, width = step.conv_size(*self.sizes[step.source])
            return 2 * (float(height * width) * step.conv.weight.numel() + positions * step.pointwise_weights)
        channels = self.program.channels[step.target]
        if isinstance(step, AttentionPass):
            return 2 * positions * channels * (4 * channels + 2 * positions)
        weights = sum(parameter.numel() for parameter in step.attention.parameters())
        sums = step.attention.to_out.in_features * (2 * step.attention.attention_head_dim + 1)
        return 2 * positions * (weights + sums)


def _weight_bytes(step: Pass) -> int:
    module: nn.Module = step.conv if isinstance(step, ConvPass) else step.attention.to_q
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.element_size()


def _rounded_up(value: float) -> str:
    """Three digits of a number, never less than it is."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step) * step:.3g}"
