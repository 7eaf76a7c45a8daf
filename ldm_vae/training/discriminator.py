"""The discriminator of a run."""

from __future__ import annotations

import torch

from ldm_vae.config.run import Config
from ldm_vae.models.discriminators.discriminator import Discriminator
from ldm_vae.models.discriminators.features import FeatureDiscriminator
from ldm_vae.models.discriminators.patch import PatchDiscriminator
from ldm_vae.models.frozen.vision import load_vision


def build_discriminator(config: Config, *, device: torch.device) -> Discriminator:
    """Build the discriminator that a config asks for; a frozen network that it looks through is on the device.

    Raises:
        ValueError: The frozen network's weights are missing. The message names the field.
    """
    loss = config.loss
    if loss.discriminator == "patch":
        return PatchDiscriminator(
            in_channels=config.model.made_channels,
            channels=loss.disc_channels,
            num_layers=loss.disc_num_layers,
            norm=loss.disc_norm,
        )
    network = load_vision(
        loss.discriminator,
        folder=loss.discriminator_weights,
        depth="quarters",
        choice="loss.discriminator",
        field="loss.discriminator_weights",
        view=config.view,
    )
    return FeatureDiscriminator(network.to(device), channels=loss.disc_channels)
