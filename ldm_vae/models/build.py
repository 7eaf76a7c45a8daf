"""The autoencoder that a config asks for: built, or loaded and given the channels asked for."""

from __future__ import annotations

import math

from ldm_vae.config.model import ModelConfig
from ldm_vae.config.rules import require
from ldm_vae.models.bottlenecks.gaussian import Gaussian
from ldm_vae.models.families.family import Family
from ldm_vae.models.families.kl import KL
from ldm_vae.models.initialisation import give_log_variance_, quiet_
from ldm_vae.models.load import load_vae
from ldm_vae.models.widen import with_latent_channels


def build_autoencoder(config: ModelConfig) -> Family:
    """Build the autoencoder of `config`, or load its `pretrained` one and give it `latent_channels`.

    Returns:
        A float32 model whose parameters are trainable.

    Raises:
        ValueError: The pretrained model can't be read or doesn't fit the config. The message names the field.
    """
    family = _built_or_loaded(config)
    if config.posterior != "learnt":
        family.bottleneck = Gaussian(posterior=config.posterior, std=config.posterior_std)
    if config.posterior == "fixed" and not config.decoder_only:
        give_log_variance_(family, 2 * math.log(config.posterior_std))
    return family


def _built_or_loaded(config: ModelConfig) -> Family:
    if config.pretrained is None:
        family: Family = KL.build(config)
        return quiet_(family) if config.init == "quiet" else family
    family = load_vae(config.pretrained, field="model.pretrained", needs_scaling=False).family.train()
    require(
        family.in_channels == config.in_channels,
        f"<model.in_channels> is {config.in_channels}, but {config.pretrained} takes {family.in_channels}",
    )
    if config.latent_channels not in (None, family.latent_channels):
        family = with_latent_channels(family, config.latent_channels)
    return family
