"""Networks whose features sets of pictures are compared in: Inception where its weights are, else EfficientNet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.names import PerceptualChoice
from ldm_vae.config.rules import FieldError, mark, require
from ldm_vae.config.views import View
from ldm_vae.models.frozen.efficientnet import load_efficientnet
from ldm_vae.models.frozen.lpips import lpips_trunk_file
from ldm_vae.models.frozen.weights import read_weights
from ldm_vae.system.pixels import from_pixels, seen, to_pixels
from ldm_vae.system.telling import tell
from ldm_vae.system.text import first_line
from ldm_vae.training.perceptual import load_perceptual

_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's, converted from the published graph


@dataclass(frozen=True, kw_only=True)
class SetFeatures:
    """A frozen network that distances between sets of pictures are measured in."""

    name: str
    """What the distances are called after."""
    network: nn.Module
    """From pixels 0 to 255, [B, 3, H, W] float32, to features [B, d]."""
    with_fid: bool
    """Whether the Frechet distance is reported too, or the kernel distance alone."""
    protocol: str
    """In words, what the features are."""
    view: View | None = None
    """What the network sees of a picture; None: grey or RGB."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features [B, d] of pictures [B, C, H, W] in [-1, 1], taken as 8-bit RGB.

        Alpha is laid on white. A picture that holds NaN has NaN for its features.
        """
        pixels = to_pixels(seen(images, **({} if self.view is None else self.view.arguments))[-1])
        broken = pixels.isnan().flatten(1).any(dim=1)
        features = self.network(pixels.nan_to_num())
        return features.masked_fill(broken[:, None], torch.nan)


@dataclass(frozen=True, kw_only=True)
class MeasuringNetworks:
    """The frozen networks that reconstructions are compared by."""

    view: View | None = None
    """What they see of an image, and pictures show; None: grey or RGB, or it isn't known."""
    perceptual_name: str | None = None
    perceptual: nn.Module | None = None
    """Perceptual distance; None measures none."""
    set_features: SetFeatures | None = None
    """Network of the distances between the sets of pictures; None measures none."""

    def to(self, device: torch.device) -> MeasuringNetworks:
        """Return them on a device, where their weights are moved."""
        perceptual, features = self.perceptual, self.set_features
        return replace(
            self,
            perceptual=None if perceptual is None else perceptual.to(device),
            set_features=None if features is None else replace(features, network=features.network.to(device)),
        )


def inception_file() -> Path:
    """Where torch's cache keeps torch-fidelity's Inception weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE


def load_set_features(
    *, inception_weights: str | None = None, device: torch.device | str = "cpu", view: View | None = None
) -> SetFeatures | None:
    """Load Inception from `inception_weights` or torch's cache; without them EfficientNet-Lite0; without that, None.

    Raises:
        ValueError: A named file is missing or isn't torch-fidelity's, or torch-fidelity isn't installed for it.
    """
    return next(_set_features(inception_weights=inception_weights, device=device, view=view), None)


def load_all_set_features(
    *, inception_weights: str | None = None, device: torch.device | str = "cpu", view: View | None = None
) -> list[SetFeatures]:
    """Load every network there is: Inception from `inception_weights` or torch's cache, and EfficientNet-Lite0.

    Raises:
        ValueError: As `load_set_features`.
    """
    return list(_set_features(inception_weights=inception_weights, device=device, view=view))


def _set_features(
    *, inception_weights: str | None, device: torch.device | str, view: View | None
) -> Iterator[SetFeatures]:
    file = inception_file() if inception_weights is None else Path(inception_weights)
    if inception_weights is not None or file.is_file():
        yield replace(_load_inception(file, device=device), view=view)
    with suppress(ValueError):  # its package isn't installed
        yield replace(_load_efficientnet(device=device), view=view)


def _load_efficientnet(*, device: torch.device | str) -> SetFeatures:
    network = load_efficientnet()
    return SetFeatures(
        name="efficientnet_lite0",
        network=_PooledEfficientNet(network).to(device),
        with_fid=False,
        protocol="mean over space of EfficientNet-Lite0's last feature map (ImageNet weights), of pictures resized to "
        "224x224 (bilinear, antialiased); not comparable with Inception's",
    )


class _PooledEfficientNet(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        size = (224, 224)
        resized = nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        return self.network.extract_features(from_pixels(resized)).mean(dim=(2, 3))  # type: ignore[operator]


def _load_inception(file: Path, *, device: torch.device | str) -> SetFeatures:
    if not file.is_file():
        raise FieldError(f"{mark('inception_weights')}: there is no file {file}")
    read_weights(file, field="inception_weights")  # torch-fidelity's own read would run a pickle's code
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file), antialias=False
        )
    except ModuleNotFoundError:
        raise FieldError(
            f"{mark('inception_weights')}: Inception needs torch-fidelity: pip install 'ldm-vae[fid]'"
        ) from None
    except Exception as error:  # a foreign pickle can raise anything
        reason = first_line(error)
        raise FieldError(
            f"{mark('inception_weights')}: {file} is not torch-fidelity's {_INCEPTION_FILE}: {reason}"
        ) from None
    return SetFeatures(
        name="inception",
        network=_ByteInput(network).to(device),
        with_fid=True,
        protocol="torch-fidelity's Inception (pool3, 2048 features, 2015-12-05 graph), its own bilinear resize to "
        "299x299 of 8-bit RGB",
    )


class _ByteInput(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.byte())


def choose_perceptual(
    name: PerceptualChoice, *, weights: str | None, device: torch.device, view: View | None = None
) -> tuple[str | None, nn.Module | None]:
    """Load the perceptual distance called `name`.

    For `auto` it is the best one that needs no download: LPIPS (vgg) where its weights are, else EfficientNet-Lite0's
    where its package is, else none.

    Returns:
        The distance's own name and its network, or None twice.

    Raises:
        ValueError: The weights of a distance that was asked for are missing or foreign.
    """
    if name == "none":
        return None, None
    if name == "auto":
        name = "lpips_vgg" if weights is not None or lpips_trunk_file("lpips_vgg").is_file() else "efficientnet_lite0"
        try:
            return name, load_perceptual(name, weights=weights, field="perceptual_weights", view=view).to(device)
        except ValueError:
            if name == "lpips_vgg":
                raise
            return None, None  # its package isn't installed
    return name, load_perceptual(name, weights=weights, field="perceptual_weights", view=view).to(device)


def load_networks(
    options: EvaluateOptions, view: View | None, *, channels: int, device: torch.device
) -> MeasuringNetworks:
    """Load the networks of an evaluation, where it is known what they see.

    Raises:
        ValueError: It isn't known what a distance sees that was asked for, or weights are missing or foreign.
    """
    if view is None:
        require(
            options.perceptual in ("auto", "none"),
            f"<perceptual_channels> is empty; of the {channels} channels name one or three for <perceptual> "
            f"{options.perceptual}",
        )
        tell(f"no network sees the {channels} channels; perceptual_channels chooses one or three of them")
        return MeasuringNetworks()
    name, perceptual = choose_perceptual(
        options.perceptual, weights=options.perceptual_weights, device=device, view=view
    )
    set_features = None
    if options.mel_frames is None:  # distances between sets are for pictures
        set_features = load_set_features(inception_weights=options.inception_weights, device=device, view=view)
    return MeasuringNetworks(view=view, perceptual_name=name, perceptual=perceptual, set_features=set_features)
