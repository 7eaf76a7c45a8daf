"""Frozen vision networks behind one interface: pictures of any size in [-1, 1] to maps of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ldm_vae.config.names import VisionNetwork as Name
from ldm_vae.config.views import View
from ldm_vae.models.frozen.efficientnet import EfficientNetFeatures, load_efficientnet
from ldm_vae.models.frozen.transformer import load_transformer
from ldm_vae.models.frozen.trunk import Depth, Trunk
from ldm_vae.models.resizing import resized
from ldm_vae.system.pixels import seen


class VisionNetwork(nn.Module):
    """A trunk with pictures made ready for it. It never trains, whatever `train()` is called with.

    Args:
        trunk: The network.
        view: What it sees of an image, where there is alpha over white; None: grey or RGB.
    """

    def __init__(self, trunk: Trunk, *, view: View | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self._view = {} if view is None else view.arguments
        self.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor, grid: tuple[int, int] | None = None) -> Sequence[Tensor]:
        """Return the features, shallow to deep.

        Args:
            images: [B, C, H, W] in [-1, 1].
            grid: Rows and columns of the last map, for which images are scaled; None: those that scale them least.
        """
        patch = self.trunk.patch_size
        rows, columns = grid or tuple(max(1, round(side / patch)) for side in images.shape[-2:])
        size = (rows * patch, columns * patch)
        return self.trunk(resized(seen(images, **self._view)[-1], size, kind=self.trunk.interpolation))

    def train(self, mode: bool = True) -> VisionNetwork:
        """Stay in eval mode."""
        return super().train(False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the trunk, in place."""
        self.trunk.compile(*args, **kwargs)


class EfficientNetTrunk(Trunk):
    """EfficientNet-Lite0, which was trained on pixels (p - 127) / 128: [-1, 1] up to half a level.

    Args:
        depth: Which features; the last map is that of stride 16.
    """

    patch_size = 16
    interpolation = "bicubic"

    def __init__(self, depth: Depth) -> None:
        super().__init__()
        self.features = EfficientNetFeatures(load_efficientnet())
        self._kept = {"last": slice(4, 5), "quarters": slice(1, 5), "all": slice(0, 5)}[depth]
        self._flat = depth == "all"
        self.channels = [32, 16, 24, 40, 112][self._kept]
        self.strides = [2, 2, 4, 8, 16][self._kept]

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Return the features, shallow to deep, of images [B, 3, H, W] in [-1, 1]."""
        maps = self.features(images)[self._kept]
        return [each.flatten(2).unsqueeze(-1) for each in maps] if self._flat else maps


def load_vision(
    name: Name, *, folder: str | None, depth: Depth, choice: str, field: str, view: View | None = None
) -> VisionNetwork:
    """Load a vision network.

    Args:
        name: Which kind.
        folder: Where transformers wrote it; EfficientNet-Lite0 needs none.
        depth: Which features it gives.
        choice: The field that gives `name`, for the error.
        field: The field that gives `folder`, for the error.
        view: What the network sees of an image; None: grey or RGB.

    Raises:
        ValueError: It isn't there, or is of another kind. The message says which folder is to hold what, and how to
            get it.
    """
    if name == "efficientnet_lite0":
        return VisionNetwork(EfficientNetTrunk(depth), view=view)
    trunk = load_transformer(name, folder=folder, depth=depth, choice=choice, field=field)
    return VisionNetwork(trunk, view=view)
