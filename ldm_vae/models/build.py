"""The autoencoder that a config asks for: built, or loaded and given the channels asked for."""

from __future__ import annotations

import math

from ldm_vae.config.model import ModelConfig
from ldm_vae.config.rules import require
from ldm_vae.models.bottlenecks.gaussian import Gaussian
from ldm_vae.models.families import FAMILIES, family_named
from ldm_vae.models.families.family import Family
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
    if config.teacher is not None:
        family.take_as_normalised()
    if not config.decoder_only:
        family.mark_encoder(trained=config.trains_encoder)
    require(
        family.has_encoder or config.teacher is not None,
        f"<model.pretrained> {config.pretrained} holds a decoder alone, whose encoder isn't trained; name the "
        f"<model.teacher> of its latents, or set <model.decoder_only> to false",
    )
    require(
        config.posterior == "learnt" or family.bottleneck.has_posterior,
        f"<model.posterior> is {config.posterior}, but the family {family.name} has no posterior; leave it out",
    )
    if config.posterior != "learnt":
        family.bottleneck = Gaussian(posterior=config.posterior, std=config.posterior_std)
    if config.posterior == "fixed" and not config.decoder_only:
        give_log_variance_(family, 2 * math.log(config.posterior_std))
    return family


def _built_or_loaded(config: ModelConfig) -> Family:
    if config.pretrained is None:
        chosen = family_named(config.family or "kl")
        require(
            config.init == "torch" or chosen.is_residual,
            f"<model.init> is {config.init}, which isn't known for the family {chosen.name}; take torch",
        )
        _check_bottleneck(config, chosen)
        family = chosen.build(config)
        family.configure(config)
        return quiet_(family) if config.init == "quiet" else family
    family = load_vae(
        config.pretrained,
        field="model.pretrained",
        config=config.pretrained_config,
        needs_scaling=False,
        needs_encoder=False,
    ).family.train()
    require(
        config.family in (None, family.name),
        f"<model.family> is {config.family}, but {config.pretrained} is of the family {family.name}; leave it out",
    )
    _check_bottleneck(config, type(family))
    family.configure(config)
    require(
        family.in_channels == config.in_channels,
        f"<model.in_channels> is {config.in_channels}, but {config.pretrained} takes {family.in_channels}",
    )
    require(
        family.out_channels == config.made_channels,
        f"<model.out_channels> is {config.made_channels}, but {config.pretrained} makes {family.out_channels}",
    )
    if config.latent_channels not in (None, family.latent_channels):
        require(
            family.changes_channels,
            f"<model.latent_channels> is {config.latent_channels}, but {config.pretrained} has "
            f"{family.latent_channels}, which can't be changed for the family {family.name}",
        )
        family = with_latent_channels(family, config.latent_channels)
    if config.decoder_block_out_channels is not None:
        family = _with_new_decoder(family, config)
    return family


def _with_new_decoder(family: Family, config: ModelConfig) -> Family:
    """Return the model with an untrained decoder of other widths, and all else as it is."""
    widths, groups = config.decoder_block_out_channels or [], family.model.config.get("norm_num_groups")
    require(
        family.name == "flux2",
        f"<model.decoder_block_out_channels> gives a pretrained model of the family flux2 a new decoder; "
        f"{config.pretrained} is of the family {family.name}",
    )
    require(
        len(widths) == len(family.model.config.block_out_channels) and all(width % groups == 0 for width in widths),
        f"<model.decoder_block_out_channels> is {widths}; {config.pretrained} has "
        f"{len(family.model.config.block_out_channels)} levels, whose widths its {groups} groups must divide",
    )
    renewed = family.from_config({**family.model.config, "decoder_block_out_channels": tuple(widths)})
    kept = {name: weight for name, weight in family.model.state_dict().items() if not name.startswith("decoder.")}
    renewed.model.load_state_dict(renewed.model.state_dict() | kept)
    return renewed.train()


def _check_bottleneck(config: ModelConfig, family: type[Family]) -> None:
    names = [bottleneck.name for bottleneck in family.bottlenecks]
    others = [
        other.name for other in FAMILIES.values() if config.bottleneck in [each.name for each in other.bottlenecks]
    ]
    require(
        config.bottleneck in (None, *names),
        f"<model.bottleneck> is {config.bottleneck}; the family {family.name} has {' or '.join(names)}, and "
        f"{config.bottleneck} is for <model.family> {' or '.join(others)}",
    )
