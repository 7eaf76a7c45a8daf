"""The objective that a config describes, with one line for each term.

A new term takes its function in `losses/`, the mixin with its weight in `config/loss.py`, and its line in `_terms`.
Its column in metrics.jsonl, its finite check and its place in the checkpoint follow from its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ldm_vae.config.loss import Ramp, Weight
from ldm_vae.config.names import PixelDistance
from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.losses.adversarial import LogitAnchors
from ldm_vae.losses.alignment import AlignmentBalance, alignment_loss
from ldm_vae.losses.equivariance import latent_consistency
from ldm_vae.losses.kl import kl_divergence
from ldm_vae.losses.likelihood import negative_log_likelihood
from ldm_vae.losses.objective import Objective
from ldm_vae.losses.pixel import pixel_distance
from ldm_vae.losses.rate import RateControl, channel_kl, posterior_moments
from ldm_vae.losses.spectrum import spectrum_divergence
from ldm_vae.losses.term import Schedule, Term
from ldm_vae.models.bottlenecks.bottleneck import Bottleneck
from ldm_vae.models.frozen.vision import load_vision
from ldm_vae.models.precision import autocast, use_bf16
from ldm_vae.models.projection import Projection, features_at_latents
from ldm_vae.models.trainable import TrainableOutput
from ldm_vae.training.perceptual import load_perceptual, perceptual_term


def build_objective(
    config: Config,
    *,
    bottleneck: Bottleneck,
    device: torch.device,
    latent_channels: int = 4,
    spatial_factor: int = 8,
) -> Objective:
    """Build the objective, with its frozen networks on the device.

    Args:
        config: The run's settings.
        bottleneck: The model's.
        device: Where the run computes.
        latent_channels: Of the model.
        spatial_factor: Of the model.

    Raises:
        ValueError: A network's weights are missing. The message names the field.
    """
    loss = config.loss
    is_taught = config.model.teacher is not None  # so that latents have the teacher's rate
    with torch.random.fork_rng(devices=[]):  # so that one more term doesn't change the other networks' first weights
        terms = list(_terms(config, bottleneck=bottleneck))
        if loss.alignment != "none":
            terms.append(
                _alignment_term(config, latent_channels=latent_channels, factor=spatial_factor, device=device)
            )
    rate = _rate_control(config, latent_channels=latent_channels, device=device)
    whose = "a teacher's latents keep theirs" if is_taught else f"a {bottleneck.name} bottleneck has none"
    require(
        rate is None or (bottleneck.has_posterior and not is_taught),
        f"<loss> asks for a rate of the posterior, but {whose}; leave it out",
    )
    if rate is not None:
        terms = [replace(term, of=partial(_kl, rate=rate)) if term.name == "kl" else term for term in terms]
    for term in terms:
        if term.frozen is not None:
            term.frozen.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Objective(
        terms=terms,
        disc_weight=loss.disc_weight,
        disc_loss=loss.disc_loss,
        learn_logvar=loss.learn_logvar,
        rate=rate,
        balance=AlignmentBalance(device=device) if loss.alignment != "none" else None,
        lecam=LogitAnchors(decay=loss.disc_lecam_decay, device=device) if loss.disc_lecam_weight > 0 else None,
        lecam_weight=loss.disc_lecam_weight,
        r1_weight=loss.disc_r1_weight * loss.disc_r1_every,
    )


def _terms(config: Config, *, bottleneck: Bottleneck) -> Iterator[Term]:
    """Yield the terms that have a weight; those of the bottleneck also without one, for their figures."""
    loss = config.loss
    weight = partial(_weight, max_train_steps=config.train.max_train_steps)
    of_pixels = partial(pixel_distance, kind=loss.reconstruction)
    yield Term(name="rec", on="images", weight=1.0 if loss.likelihood == "none" else 0.0, of=of_pixels)
    if loss.likelihood != "none":
        of_levels = partial(negative_log_likelihood, kind=loss.likelihood)
        yield Term(name="nll", on="likelihood", weight=1.0, of=of_levels)
    if loss.perceptual != "none" and loss.perceptual_weight != 0:
        distance = load_perceptual(loss.perceptual, weights=loss.perceptual_weights, view=config.view)
        yield perceptual_term(distance, weight=weight(loss.perceptual_weight))
    if bottleneck.has_posterior and config.model.teacher is None:
        yield Term(name="kl", on="latents", weight=weight(loss.rate_weight), of=_kl)
    if "commitment" in bottleneck.losses:
        yield Term(name="commitment", on="latents", weight=weight(loss.commitment_weight), of=_commitment)
    if loss.spectrum_weight != 0:
        of_latents = partial(_spectrum, flattening=loss.spectrum_flattening)
        yield Term(name="spectrum", on="latents", weight=weight(loss.spectrum_weight), of=of_latents)
    if loss.equivariance_weight != 0:
        of = partial(_equivariance, kind=loss.reconstruction)
        yield Term(name="equivariance", on="latents", weight=weight(loss.equivariance_weight), of=of)
    if loss.consistency_weight != 0:
        yield Term(name="consistency", on="latents", weight=weight(loss.consistency_weight), of=_consistency)
    if config.model.teacher is not None and config.model.trains_encoder:
        yield Term(name="imitation", on="latents", weight=weight(loss.imitation_weight), of=_imitation)


def _alignment_term(config: Config, *, latent_channels: int, factor: int, device: torch.device) -> Term:
    """Return the alignment with a frozen network, of latents as they are sampled."""
    loss = config.loss
    assert loss.alignment != "none"
    network = load_vision(
        loss.alignment,
        folder=loss.alignment_weights,
        depth="last",
        choice="loss.alignment",
        field="loss.alignment_weights",
        view=config.view,
    )
    projection = Projection(latent_channels, network.trunk.channels[-1])
    bf16 = use_bf16(config.train.mixed_precision, device=device)

    def of(z: Tensor, images: Tensor) -> Tensor:
        with autocast(device, enabled=bf16):
            height, width = z.shape[-2:]
            features = features_at_latents(network, images, latent_size=(height, width), factor=factor)
        rows, columns = features.shape[-2:]
        return alignment_loss(
            projection(z, (rows, columns)),
            features,
            cosine_margin=loss.alignment_cosine_margin,
            distance_margin=loss.alignment_distance_margin,
        )

    weight = _weight(loss.alignment_weight, max_train_steps=config.train.max_train_steps)
    return Term(name="alignment", on="encoder", weight=weight, of=of, frozen=network, network=projection)


def _rate_control(config: Config, *, latent_channels: int, device: torch.device) -> RateControl | None:
    """Return what bounds the rate from below, where something does."""
    loss = config.loss
    if loss.free_bits == 0 and loss.capacity is None:
        return None
    capacity = loss.capacity
    return RateControl(
        free_bits=loss.free_bits,
        capacity=None if capacity is None else _weight(capacity, max_train_steps=config.train.max_train_steps),
        channels=latent_channels,
        device=device,
    )


def _kl(output: TrainableOutput, images: Tensor, *, rate: RateControl | None = None) -> Tensor:
    """Mean KL divergence of an image, divided by its number of elements."""
    latent = output.latent
    assert latent.posterior_logvar is not None, "a Gaussian bottleneck has a log-variance"
    kl = kl_divergence(latent.mean, latent.posterior_logvar).mean() / images[0].numel()
    if rate is None:
        return kl
    positions = latent.mean[0, 0].numel()
    return rate.gated(
        kl, channel_kl(posterior_moments(latent.mean, latent.posterior_logvar)) * positions / images[0].numel()
    )


def _spectrum(output: TrainableOutput, images: Tensor, *, flattening: float) -> Tensor:
    """Divergence of the sampled latents' spectrum from the images'."""
    return spectrum_divergence(output.latent.z, images, flattening=flattening)


def _commitment(output: TrainableOutput, images: Tensor) -> Tensor:
    """Mean squared distance of the encoder's output from its codes, an element of the latent."""
    return output.latent.losses["commitment"]


def _equivariance(output: TrainableOutput, images: Tensor, *, kind: PixelDistance) -> Tensor | None:
    """Pixel distance of a second decode, of transformed latents, to the images transformed alike."""
    pair = output.pair
    if pair is None or pair.reconstruction is None:
        return None
    return pixel_distance(pair.images, pair.reconstruction, kind=kind)


def _consistency(output: TrainableOutput, images: Tensor) -> Tensor | None:
    """Squared difference of the transformed images' latents from the transformed latents, over their variance."""
    pair = output.pair
    if pair is None or pair.mean_of_images is None:
        return None
    return latent_consistency(pair.mean_of_images, pair.mean)


def _imitation(output: TrainableOutput, images: Tensor) -> Tensor:
    """Mean squared distance of the encoder's latents from the teacher's, an element."""
    return output.latent.losses["imitation"]


def _weight(weight: Weight, *, max_train_steps: int) -> float | Schedule:
    if not isinstance(weight, Ramp):
        return weight
    from_step, to_step = weight.steps(max_train_steps)
    return Schedule(start=weight.start, end=weight.end, from_step=from_step, to_step=to_step, cycles=weight.cycles)
