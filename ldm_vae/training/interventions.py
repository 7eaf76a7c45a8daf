"""The interventions that a config asks for: changes of latents and images between encoder and decoder."""

from __future__ import annotations

from ldm_vae.config.loss import LossConfig
from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.models.families.family import Family
from ldm_vae.models.interventions import BLOCK, Equivariance, LowPass, NoisyLatents
from ldm_vae.models.trainable import Intervention, PairRules

LEAST_SIDE = {"lpips_vgg": 16, "lpips_alex": 35, "lpips_squeeze": 19}  # in pixels, of images that the trunks take


def build_interventions(config: Config, *, family: Family) -> list[Intervention]:
    """Return the interventions, in the order in which they change a sample.

    Raises:
        FieldError: A side of images or latents doesn't fit one of them. The message names the field.
    """
    loss, interventions = config.loss, list[Intervention]()
    sides = _sides(config)
    _check_turns(config)
    if loss.low_pass:
        for side in sides:
            require(
                side // family.spatial_factor % BLOCK == 0,
                f"<loss.low_pass> takes blocks of {BLOCK}x{BLOCK} latent pixels, but images of {side} pixels have "
                f"{side // family.spatial_factor} a side; take sides that {BLOCK * family.spatial_factor} divides",
            )
        interventions.append(LowPass())
    if loss.eq_probability > 0:
        _check_smallest(config, family=family)
        interventions.append(Equivariance(factor=family.spatial_factor))
    if loss.latent_noise != "off" and not config.model.decoder_only:
        interventions.append(NoisyLatents(kind=loss.latent_noise, strength=loss.latent_noise_strength))
    return interventions


def pair_rules(loss: LossConfig) -> PairRules:
    """Return what the objective needs of images and latents that are transformed beside the ordinary losses."""
    return PairRules(decode=loss.equivariance_weight != 0, encode=loss.consistency_weight != 0)


def _sides(config: Config) -> list[int]:
    """Return every side that images of the run have, in pixels."""
    return [*config.data.early_resolutions, *dict.fromkeys(side for size in config.data.sizes for side in size)]


def _check_turns(config: Config) -> None:
    """Refuse quarter turns of images that aren't square, which would have another shape."""
    loss = config.loss
    turned = (loss.eq_probability > 0 or loss.compares_pairs) and {90, 270} & set(loss.equivariance_rotations)
    require(
        not turned or all(width == height for width, height in config.data.sizes),
        f"<loss.equivariance_rotations> is {loss.equivariance_rotations}, but images of <data.buckets> that aren't "
        f"square keep their shape only by 0 and 180",
    )


def _check_smallest(config: Config, *, family: Family) -> None:
    """Refuse scaled images that the perceptual network or the discriminator can't take."""
    loss, factor = config.loss, family.spatial_factor
    least = LEAST_SIDE.get(loss.perceptual, 1) if loss.perceptual_weight != 0 else 1
    if loss.disc_weight > 0 and loss.discriminator == "patch":
        least = max(least, 3 * 2**loss.disc_num_layers)
    resolution = min(_sides(config))
    scale = min(loss.equivariance_scales)
    smallest = factor * max(1, round(scale * (resolution // factor)))
    require(
        smallest >= least,
        f"<loss.equivariance_scales> has {scale:g}, which makes images of {smallest} pixels of those of {resolution}; "
        f"the perceptual network and the discriminator need {least} for <loss.eq_probability>",
    )
