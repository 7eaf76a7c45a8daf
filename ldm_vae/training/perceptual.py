"""The perceptual distance that settings name: its frozen network, its heads where it has some, and its term."""

from __future__ import annotations

from typing import cast, get_args

from torch import nn

from ldm_vae.config.names import VisionNetwork
from ldm_vae.config.views import View
from ldm_vae.losses.perceptual import PerceptualDistance
from ldm_vae.losses.term import Schedule, Term
from ldm_vae.models.frozen.efficientnet import EfficientNetFeatures, load_efficientnet
from ldm_vae.models.frozen.lpips import LpipsFeatures, load_lpips
from ldm_vae.models.frozen.vision import load_vision


def load_perceptual(
    name: str, *, weights: str | None = None, field: str = "loss.perceptual_weights", view: View | None = None
) -> PerceptualDistance:
    """Load a perceptual distance.

    Args:
        name: As `loss.perceptual` has it, but for `none`.
        weights: For LPIPS, a file with the trunk's ImageNet weights as torchvision publishes them, or a folder that
            holds it; None: torch's cache, then a download. For a vision transformer, its folder.
        field: The option that gives `weights`, for the error.
        view: What the network sees of an image; None: grey or RGB.

    Raises:
        ValueError: The weights are missing (the message says which file to put where) or aren't this network's.
    """
    how = {} if view is None else view.arguments
    if name == "efficientnet_lite0":
        return PerceptualDistance(EfficientNetFeatures(load_efficientnet()), **how)
    if name in get_args(VisionNetwork):
        return PerceptualDistance(
            load_vision(cast(VisionNetwork, name), folder=weights, depth="all", choice="loss.perceptual", field=field),
            **how,
        )
    network = load_lpips(name, weights=weights, field=field)
    return PerceptualDistance(LpipsFeatures(network), heads=network.lins, **how)


def perceptual_term(distance: nn.Module, *, weight: float | Schedule) -> Term:
    """Return the term of a distance that is called with (images, reconstruction) and gives [B]."""
    return Term(
        name="perceptual", on="images", weight=weight, frozen=distance, of=lambda images, y: distance(images, y).mean()
    )
