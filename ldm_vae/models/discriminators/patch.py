"""PatchGAN discriminator (Isola et al. 2017, section 3.2.2), with norms that keep no buffers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ldm_vae.models.blocks import speed_up_blocks
from ldm_vae.models.discriminators.discriminator import Discriminator, Judgement, Sight

GROUPS = 32


class PatchDiscriminator(Discriminator):
    """Judges overlapping patches by strided 4x4 convolutions, with one logit for each patch.

    The published norm is BatchNorm, which mixes the images of a call. The default here is group norm, which doesn't,
    so that the result doesn't depend on how the batch is cut. Neither keeps running statistics, which nothing would
    read.

    Args:
        in_channels: Channels of the images.
        channels: Width of the first layer.
        num_layers: Strided layers.
        norm: Which norm.
    """

    def __init__(
        self, *, in_channels: int, channels: int = 64, num_layers: int = 3, norm: Literal["group", "batch"] = "group"
    ):
        super().__init__()
        self.norm = norm
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, num_layers + 1):
            stride = 2 if layer < num_layers else 1
            next_width = channels * min(2**layer, 8)
            layers += [
                nn.Conv2d(width, next_width, 4, stride=stride, padding=1, bias=False),
                self._make_norm(next_width),
                nn.LeakyReLU(0.2),
            ]
            width = next_width
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)
        speed_up_blocks(self)

    def _make_norm(self, width: int) -> nn.Module:
        if self.norm == "batch":
            return nn.BatchNorm2d(width, track_running_stats=False)
        return nn.GroupNorm(min(GROUPS, width), width)

    def look(self, images: Tensor) -> Sight:
        """Return the images themselves."""
        return images

    def forward(self, images: Tensor, reconstruction: Sight, *, differentiable: bool = False) -> Judgement:
        """Judge real and reconstructed images.

        Both go through the network in one call, unless the norm would mix them.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstruction: [B, C, H, W].
            differentiable: Let the gradient at the images be differentiated itself.
        """
        assert isinstance(reconstruction, Tensor)
        if differentiable:
            images = images.detach().requires_grad_()
        logits = self._plain_logits if differentiable else self.logits
        if self.norm == "batch":
            return Judgement(logits(images), logits(reconstruction), images)
        real, fake = logits(torch.cat([images, reconstruction])).chunk(2)
        return Judgement(real, fake, images)

    def logits(self, sight: Sight) -> Tensor:
        """Return the logits, [B, 1, h, w], float32, of images [B, C, H, W] in [-1, 1]."""
        return self.layers(sight).float()

    def compile_networks(self) -> None:
        """Compile the layers, in place."""
        self.layers.compile()

    def _plain_logits(self, images: Tensor) -> Tensor:
        """Return the logits by torch's own forwards: neither compiled layers nor faster norms differentiate twice."""
        hidden = images
        for layer in self.layers:
            hidden = type(layer).forward(layer, hidden)
        return hidden.float()


def initialise(module: nn.Module) -> None:
    """Initialise as published: N(0, 0.02) convolutions, N(1, 0.02) norm scales."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
