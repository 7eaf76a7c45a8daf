"""A discriminator that looks through a frozen vision network (Sauer et al. 2021, "Projected GANs Converge Faster")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_vae.models.blocks import speed_up_blocks
from ldm_vae.models.discriminators.discriminator import Discriminator, Judgement, Sight
from ldm_vae.models.discriminators.patch import GROUPS, initialise
from ldm_vae.models.frozen.vision import VisionNetwork


class FeatureDiscriminator(Discriminator):
    """Judges a frozen network's maps at several depths by small heads, which alone are trained.

    A head makes logits of one map, one for each place of the deepest; strided layers take shallower maps there. Its
    norms are group norms, so that the result doesn't depend on how the batch is cut. The frozen network is no child of
    this module: neither DDP nor optimizer nor checkpoint have it, and it has to be on the device already.

    Args:
        network: Gives the maps, shallow to deep.
        channels: Width of the heads.
    """

    frozen: VisionNetwork

    def __init__(self, network: VisionNetwork, *, channels: int = 64) -> None:
        super().__init__()
        object.__setattr__(self, "frozen", network)  # as an attribute, not as a child
        deepest = network.trunk.strides[-1]
        self.heads = nn.ModuleList(
            _head(width, channels=channels, num_strides=int(math.log2(deepest // stride)))
            for width, stride in zip(network.trunk.channels, network.trunk.strides, strict=True)
        )
        self.apply(initialise)
        speed_up_blocks(self)

    def look(self, images: Tensor) -> Sight:
        """Return the frozen network's maps of images [B, C, H, W] in [-1, 1], with a graph down to them."""
        return tuple(self.frozen(images))

    def logits(self, sight: Sight) -> Tensor:
        """Return the logits, [B, heads, h, w], float32, of maps."""
        return torch.cat([head(each) for head, each in zip(self.heads, sight, strict=True)], dim=1).float()

    def forward(self, images: Tensor, reconstruction: Sight, *, differentiable: bool = False) -> Judgement:
        """Judge real and reconstructed images; with `differentiable`, `at` are the maps of the images, in a row.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstruction: The maps of the reconstructions, without a graph.
            differentiable: Let the gradient at the maps be differentiated itself.
        """
        with torch.no_grad():
            real = self.look(images)
        if not differentiable:
            both = tuple(torch.cat(pair) for pair in zip(real, reconstruction, strict=True))
            logits_real, logits_fake = self.logits(both).chunk(2)
            return Judgement(logits_real, logits_fake, images)
        at = torch.cat([each.float().flatten(1) for each in real], dim=1).requires_grad_()
        parts = at.split([each[0].numel() for each in real], dim=1)
        maps = [part.unflatten(1, each.shape[1:]) for part, each in zip(parts, real, strict=True)]
        return Judgement(self._plain_logits(maps), self._plain_logits(reconstruction), at)

    def compile_networks(self) -> None:
        """Compile the frozen network and the heads, in place."""
        self.frozen.compile()
        for head in self.heads:
            head.compile()

    def _plain_logits(self, sight: Sight | list[Tensor]) -> Tensor:
        """Return the logits by torch's own forwards: neither compiled layers nor faster norms differentiate twice."""
        judged = []
        for head, hidden in zip(self.heads, sight, strict=True):
            assert isinstance(head, nn.Sequential)
            for layer in head:
                hidden = type(layer).forward(layer, hidden)
            judged.append(hidden)
        return torch.cat(judged, dim=1).float()


def _head(width: int, *, channels: int, num_strides: int) -> nn.Sequential:
    """Return a head: [B, width, h, w] to [B, 1, h', w'], each side halved `num_strides` times, rounded up."""
    layers: list[nn.Module] = [nn.Conv2d(width, channels, 1, bias=False)]
    for stride in (*(2,) * num_strides, 1):
        layers += [
            nn.GroupNorm(math.gcd(GROUPS, max(1, channels // 4)), channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False),
        ]
    layers += [nn.GroupNorm(math.gcd(GROUPS, max(1, channels // 4)), channels), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))
