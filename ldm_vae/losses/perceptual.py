"""Perceptual distances: differences of a frozen network's features, normalised over channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ldm_vae.system.pixels import seen


class PerceptualDistance(nn.Module):
    """Squared distance of a frozen network's features (Zhang et al. 2018, equation 1).

    Feature maps are normalised over channels; their squared differences are weighted over channels, averaged over
    space and added up over layers. With the heads of `lpips` the distance equals `lpips.LPIPS(x, y)`, but for features
    that are zero in all channels: their gradient is zero here and NaN there. Without heads every channel has weight 1,
    and the layers have equal weights that add up to 1.

    The network never trains: its weights get no gradient and its dropout is off, whatever `train()` is called with.

    Args:
        network: Maps pictures [B, 3, H, W] in [-1, 1] to feature maps, shallow to deep.
        channels: Channels of an image that the network sees: three, or one, which is repeated. Without them images are
            grey or red, green and blue.
        alpha: Channel that says how opaque a pixel is; None: all are opaque.
        heads: One module for each layer, which maps [B, channels, h, w] to [B, 1, h, w]. With None the channels are
            added up and the sum is divided by the number of layers.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: Sequence[int] | None = None,
        alpha: int | None = None,
        heads: Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.alpha = channels, alpha
        self.network = network
        self.heads = nn.ModuleList(heads) if heads is not None else None
        self.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the distance of each pair.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstruction: Likewise; the gradient flows to it alone.

        Returns:
            [B], float32, 0 for equal pictures.
        """
        squared = self._squared(images, reconstruction)
        if self.heads is None:
            layers = [layer.sum(1).mean(dim=(1, 2)) / len(squared) for layer in squared]
        else:
            heads = zip(self.heads, squared, strict=True)
            layers = [head(layer).float().mean(dim=(1, 2, 3)) for head, layer in heads]
        return torch.stack(layers).sum(0).reshape(-1, len(images)).mean(0)

    @torch.no_grad()
    def maps(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance of each pair, and where in the picture it comes from.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstruction: Likewise.

        Returns:
            The distances [B], and maps [B, H, W]: the layers' own maps, enlarged bilinearly and added up. Where a
            layer's sides divide the picture's and its map is flat at the borders, the mean of a map is the distance.
        """
        squared = self._squared(images, reconstruction)
        if self.heads is None:
            layers = [layer.sum(1, keepdim=True) / len(squared) for layer in squared]
        else:
            layers = [head(layer).float() for head, layer in zip(self.heads, squared, strict=True)]
        distances = torch.stack([layer.mean(dim=(1, 2, 3)) for layer in layers]).sum(0)
        size = images.shape[-2:]
        enlarged = [nn.functional.interpolate(layer, size, mode="bilinear", align_corners=False) for layer in layers]
        maps = torch.stack(enlarged).sum(0)[:, 0]
        return (
            distances.reshape(-1, len(images)).mean(0),
            maps.reshape(-1, len(images), *size).mean(0),
        )

    def _squared(self, images: Tensor, reconstruction: Tensor) -> list[Tensor]:
        """Return the squared differences of the normalised features, a map a layer: [V·B, channels, h, w]."""
        with torch.no_grad():
            target = self.network(torch.cat(seen(images, channels=self.channels, alpha=self.alpha)))
        source = self.network(torch.cat(seen(reconstruction, channels=self.channels, alpha=self.alpha)))
        return [(unit_channels(a) - unit_channels(b)).square() for a, b in zip(target, source, strict=True)]

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in eval mode."""
        return super().train(False)


def unit_channels(features: Tensor) -> Tensor:
    """Return each position's feature vector scaled to length 1, in float32: [B, C, H, W]."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)
