"""Run a program over strips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.models.exact.linear_attention import LinearScores, heads_at_all_scales
from ldm_vae.models.exact.maps import RowMap, Tier, rows_of, strip_of
from ldm_vae.models.exact.program import AttentionPass, ConvPass, LinearAttentionPass, Program
from ldm_vae.models.exact.sharing import Sharing
from ldm_vae.models.exact.statistics import ChannelStatistics
from ldm_vae.system.memory import release_freed_memory


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a program is cut: the tier of each map, and the rows of each pass's strips."""

    tiers: list[Tier]
    rows: list[int]
    folder: str | None = None


class Execution:
    """One image's way through a program.

    Args:
        program: The network's passes.
        layout: How they are cut.
        height, width: Of the input.
        device: The network's.
        sharing: The processes that share the image. All of them give the same image, and get the same result.
    """

    def __init__(
        self,
        program: Program,
        layout: Layout,
        *,
        height: int,
        width: int,
        device: torch.device,
        sharing: Sharing | None = None,
    ):
        self.program, self.layout, self.device = program, layout, device
        self.sizes = program.sizes(height, width)
        fits = sharing is not None and sharing.num_processes <= min(rows for rows, _ in self.sizes)
        self.sharing = sharing if sharing is not None and fits else Sharing()  # a part has at least one row
        self.last_uses = program.last_uses()
        self.norms = {step.source for step in program.passes if step.norm is not None}
        self.maps: dict[int, RowMap] = {}
        self.statistics: dict[int, ChannelStatistics] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Run on [1, C, H, W], on the device of the program's weights, and return the whole result there."""
        first, last = self.sharing.rows(image.shape[2])
        self._write(0, image[:, :, first:last].contiguous(memory_format=torch.channels_last))
        for number, step in enumerate(self.program.passes):
            if isinstance(step, ConvPass):
                self._convolve(number, step)
            elif isinstance(step, AttentionPass):
                self._attend(number, step)
            else:
                self._attend_linearly(number, step)
            if step.target in self.statistics:
                self.statistics[step.target] = self.statistics[step.target].reduce(self.sharing.group)
            for finished in (step.source, step.residual):
                if finished is not None and self.last_uses[finished] == number:
                    self.maps.pop(finished, None)
            if self.device.type == "cpu":
                release_freed_memory()  # strips of the next pass are of another size, and would lie beside the holes
        result = self.maps[self.program.passes[-1].target]
        own = rows_of(result.read(*self.sharing.rows(result.height)))
        return strip_of(self.sharing.gather(own, self._counts(result.height)))

    def _write(self, number: int, strip: Tensor) -> None:
        """Append a strip to a map, which begins with its first strip."""
        if number not in self.maps:
            height, width = self.sizes[number]
            self.maps[number] = RowMap(
                (strip.shape[1], height, width),
                dtype=strip.dtype,
                device=self.device,
                start=self.sharing.rows(height)[0],
                tier=self.layout.tiers[number],
                folder=self.layout.folder,
            )
            if number in self.norms:
                self.statistics[number] = ChannelStatistics(strip.shape[1], device=self.device)
        if number in self.statistics:
            self.statistics[number].add(strip)
        self.maps[number].write(strip)

    def _convolve(self, number: int, step: ConvPass) -> None:
        source, residual = self.maps[step.source], None if step.residual is None else self.maps[step.residual]
        norm = None if step.norm is None else Normalisation(step.norm, self.statistics[step.source])
        ranges = self._ranges(self.sizes[step.target][0])
        for which in step.reads(*ranges[0], height=source.height):
            needed = [step.reads(*rows, height=source.height)[which] for rows in ranges]
            self.sharing.exchange(self.maps[which], needed)
        for start, stop in self._strips(number):
            top, bottom = step.source_rows(start, stop, height=source.height)
            hidden = source.read(top, bottom)
            hidden = hidden if norm is None else norm(hidden)
            if step.act is not None:
                hidden = F.silu(hidden, inplace=norm is not None) if _is_silu(step.act) else step.act(hidden)
            hidden = _convolution(step, hidden, top=top, start=start, stop=stop, height=source.height)
            if residual is not None:
                kept = residual.read(*step.shortcut_moves.rows_before(start, stop))
                if step.shortcut is not None:
                    kept = step.shortcut(kept.to(step.conv.weight.dtype))
                hidden += step.shortcut_moves.cut(kept, start=start, stop=stop)
            if step.after is not None:
                hidden = step.after(hidden)
            self._write(step.target, hidden)
            for which, (first, _) in step.reads(stop, stop + 1, height=source.height).items():
                if self.last_uses[which] == number:
                    self.maps[which].let_go(first)

    def _attend(self, number: int, step: AttentionPass) -> None:
        attention, source = step.attention, self.maps[step.source]
        norm = Normalisation(step.norm, self.statistics[step.source])
        width, heads = source.width, attention.heads
        first, last = self.sharing.rows(source.height)
        own = {name: source.empty(0).new_empty(((last - first) * width, attention.inner_dim)) for name in "kv"}
        for start, stop in self._strips(number):
            tokens = _tokens(norm(source.read(start, stop)))
            here = slice((start - first) * width, (stop - first) * width)
            own["k"][here], own["v"][here] = attention.to_k(tokens), attention.to_v(tokens)

        def heads_first(tokens: Tensor) -> Tensor:
            return tokens.view(1, len(tokens), heads, -1).transpose(1, 2)

        counts = [count * width for count in self._counts(source.height)]
        key, value = (
            heads_first(self.sharing.gather(own.pop("k"), counts)),
            heads_first(self.sharing.gather(own.pop("v"), counts)),
        )
        for start, stop in self._strips(number):
            strip = source.read(start, stop)
            query = heads_first(attention.to_q(_tokens(norm(strip))))
            mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)[0]
            mixed = attention.to_out[0](mixed).view(stop - start, width, -1)
            summed = strip_of(mixed) + strip
            factor = attention.rescale_output_factor
            self._write(step.target, summed if factor == 1 else summed / factor)
            if self.last_uses[step.source] == number:
                source.let_go(stop)

    def _attend_linearly(self, number: int, step: LinearAttentionPass) -> None:
        source, attention = self.maps[step.source], step.attention
        ranges = self._ranges(source.height)
        self.sharing.exchange(source, [step.source_rows(*rows, height=source.height) for rows in ranges])

        def heads(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
            top, bottom = step.source_rows(start, stop, height=source.height)
            rows = source.read(top, bottom)
            return heads_at_all_scales(attention, rows, top=top, start=start, stop=stop, height=source.height)

        scores = LinearScores(device=self.device)
        for start, stop in self._strips(number):
            scores.add(*heads(start, stop)[1:])
        scores.reduce(self.sharing.group)
        for start, stop in self._strips(number):
            strip = source.read(start, stop)
            mixed = scores.of(heads(start, stop)[0], eps=attention.eps).to(strip.dtype)
            mixed = attention.to_out(mixed.reshape(-1, stop - start, source.width).movedim(0, -1))
            self._write(step.target, step.norm_out(strip_of(mixed)) + strip)
            if self.last_uses[step.source] == number:
                source.let_go(step.source_rows(stop, stop + 1, height=source.height)[0])

    def _strips(self, number: int) -> Iterator[tuple[int, int]]:
        """Rows [start, stop) of a pass's target, one strip after the other, of this process's part."""
        first, last = self.sharing.rows(self.sizes[self.program.passes[number].target][0])
        rows = self.layout.rows[number]
        return ((start, min(start + rows, last)) for start in range(first, last, rows))

    def _counts(self, height: int) -> list[int]:
        """How many rows each process holds of a map of this height."""
        return [last - first for first, last in self._ranges(height)]

    def _ranges(self, height: int) -> list[tuple[int, int]]:
        """The rows that each process holds of a map of this height."""
        return [self.sharing.rows(height, rank) for rank in range(self.sharing.num_processes)]


class Normalisation:
    """A group norm with statistics that are known: a scale and a shift a channel."""

    def __init__(self, norm: nn.GroupNorm, statistics: ChannelStatistics):
        self.mean, self.variance = statistics.of_groups(norm)
        self.weight = None if norm.weight is None else norm.weight.float()
        self.bias = None if norm.bias is None else norm.bias.float()
        self.eps = norm.eps

    def __call__(self, strip: Tensor) -> Tensor:
        """Normalise [1, C, h, W], in the strip's type."""
        return F.batch_norm(strip, self.mean, self.variance, self.weight, self.bias, eps=self.eps)


def _is_silu(act: object) -> bool:
    return isinstance(act, nn.SiLU)


def _convolution(step: ConvPass, hidden: Tensor, *, top: int, start: int, stop: int, height: int) -> Tensor:
    """The target's rows [start, stop), of the source's rows from `top` on; zeros only where the whole map has them."""
    first, last = step.input_rows(start, stop)
    end = height * step.upsample
    if step.upsample > 1:
        hidden = F.interpolate(hidden, scale_factor=float(step.upsample), mode="nearest")
        offset = max(first, 0) - top * step.upsample
        hidden = hidden[:, :, offset : offset + min(last, end) - max(first, 0)]
    hidden = hidden.to(step.conv.weight.dtype)
    above, below = max(0, -first), max(0, last - end)
    left, right, _, _ = step.pad
    if above or below or left != right:
        hidden = F.pad(hidden, (left, right, above, below))
        left = 0
    conv = step.conv
    hidden = F.conv2d(hidden, conv.weight, conv.bias, stride=conv.stride, padding=(0, left), groups=conv.groups)
    return hidden if step.then is None else step.moves.cut(step.then(hidden), start=start, stop=stop)


def _tokens(strip: Tensor) -> Tensor:
    """[1, C, h, W] as [h·W, C]."""
    return strip[0].permute(1, 2, 0).flatten(0, 1)
