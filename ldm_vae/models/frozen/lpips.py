"""The trunks of LPIPS (Zhang et al. 2018), with its calibrated heads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import lpips
import torch
import torchvision
from torch import Tensor, nn

from ldm_vae.config.rules import mark, within
from ldm_vae.models.frozen.weights import cached_file, find_weights, read_weights

# ImageNet weights as torchvision publishes them: what the heads were calibrated on.
_TRUNKS = {
    "lpips_vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "lpips_alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "lpips_squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}


class LpipsFeatures(nn.Module):
    """The rectified maps of `lpips`'s own network, shallow to deep, of pictures [B, 3, H, W] in [-1, 1]."""

    def __init__(self, network: lpips.LPIPS) -> None:
        super().__init__()
        self.scaling_layer, self.net = network.scaling_layer, network.net

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Return the maps of the network's depths."""
        return self.net(self.scaling_layer(images))


def lpips_trunk_file(name: str) -> Path:
    """Return where torch's cache keeps the trunk of an LPIPS distance, whether or not it is there."""
    return cached_file(_TRUNKS[name].url.rsplit("/", 1)[-1])


def load_lpips(name: str, *, weights: str | None, field: str) -> lpips.LPIPS:
    """Load `lpips_vgg`, `lpips_alex` or `lpips_squeeze` as `lpips`'s own network.

    Args:
        name: Which of them.
        weights: A file with the trunk's ImageNet weights, or a folder that holds it. Without it they are taken from
            torch's cache, or downloaded.
        field: The field that gives `weights`, for the error.

    Raises:
        ValueError: The weights are missing (the message says which file to put where) or aren't this network's.
    """
    url = _TRUNKS[name].url
    path = find_weights(
        url.rsplit("/", 1)[-1], source=weights, url=url, field=field, purpose=f"the perceptual distance {name}"
    )
    trunk = read_weights(path, field=field)
    network = _empty_lpips(name.removeprefix("lpips_"))
    # lpips keeps torchvision's layer numbers inside its slices: slice2.5.weight is features.5.weight.
    renamed = {key: "features." + key.split(".", 1)[1] for key in network.net.state_dict()}
    missing = [key for key in renamed.values() if key not in trunk]
    if missing:
        raise within(mark(field), f"{path} is no torchvision file for {name}: it lacks {missing[0]}")
    network.net.load_state_dict({key: trunk[source] for key, source in renamed.items()}, assign=True)
    return network


def _empty_lpips(net: str) -> lpips.LPIPS:
    """Return lpips's network with its heads, and without weights in the trunk: drawing random ones takes seconds."""
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # lpips calls torchvision the old way
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    network.scaling_layer = lpips.ScalingLayer()  # its constants are lost on the meta device
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    network.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False, assign=True)
    return network
