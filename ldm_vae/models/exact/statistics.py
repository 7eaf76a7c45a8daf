"""Group-norm statistics of a map that is never whole in one place: gathered strip by strip, and merged."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

PIECE = 1024  # pixels, whose sums in float32 are still as good as float32


class ChannelStatistics:
    """Count, mean and sum of squared deviations of each channel, over all strips seen so far.

    Strips are merged by Chan, Golub and LeVeque (1983): the variance of the strips' means counts too, which an average
    of the strips' variances leaves out.
    """

    def __init__(self, channels: int, *, device: torch.device):
        wide = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.count = 0
        self.mean = torch.zeros(channels, dtype=wide, device=device)
        self.deviations = torch.zeros(channels, dtype=wide, device=device)

    def add(self, strip: Tensor) -> None:
        """Merge a strip [1, C, h, W]."""
        pixels = strip.permute(0, 2, 3, 1).reshape(-1, strip.shape[1])  # a view of a channels_last strip
        means, variances = _moments_on_cpu(pixels) if pixels.device.type == "cpu" else _moments(pixels)
        counts = means.new_full((len(means), 1), PIECE)
        counts[-1] = len(pixels) - PIECE * (len(means) - 1)
        mean = (means * counts).sum(0) / len(pixels)
        self.merge(len(pixels), mean, ((variances + (means - mean).square()) * counts).sum(0))

    def merge(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        """Merge the statistics of other pixels: their number, means [C] and sums of squared deviations [C]."""
        total = self.count + count
        if total == 0:
            return
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.deviations = self.deviations + deviations + difference.square() * (self.count * count / total)
        self.count = total

    def reduce(self, group: dist.ProcessGroup | None) -> ChannelStatistics:
        """Return the statistics over all processes of `group`, merged in the order of their ranks."""
        if group is None:
            return self
        own = torch.cat([self.mean.new_tensor([float(self.count)]), self.mean, self.deviations])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, own, group=group)
        merged = ChannelStatistics(len(self.mean), device=self.mean.device)
        for other in every:
            mean, deviations = other[1:].chunk(2)
            merged.merge(int(other[0]), mean, deviations)
        return merged

    def of_groups(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel's group: two float32 tensors [C]."""
        means = self.mean.view(norm.num_groups, -1)
        variances = (self.deviations / self.count).view(norm.num_groups, -1)
        mean = means.mean(1, keepdim=True)
        variance = (variances + (means - mean).square()).mean(1, keepdim=True)
        return mean.expand_as(means).flatten().float(), variance.expand_as(means).flatten().float()


def _moments_on_cpu(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel in each PIECE of [N, C]: float64 [pieces, C].

    Batch norm's own pass over a channels_last image is several times as fast as `var_mean`; it subtracts the mean
    before it squares, and sums in float32.
    """
    channels = pixels.shape[1]
    kept = torch.zeros(channels), torch.ones(channels)  # running statistics in float32 keep bf16's sums in float32
    pieces = [
        torch.ops.aten.batch_norm_update_stats(piece.t()[None, :, :, None], *kept, 0.0)
        for piece in pixels.split(PIECE)
    ]
    means, variances = zip(*pieces, strict=True)
    return torch.stack(means).double(), torch.stack(variances).double()


def _moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The same on other devices, where a sum is a tree and a piece as long as it gets."""
    wide = torch.float32 if pixels.device.type == "mps" else torch.float64
    whole = pixels.float()
    mean = whole.mean(0, keepdim=True)
    return mean.to(wide), (whole - mean).square_().mean(0, keepdim=True).to(wide)
