"""Where samples come from: the prior, or what is fitted to latents; chosen by what was measured, and told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm_vae.config.names import Covariance, SampleMethod
from ldm_vae.config.rules import require, require_divides
from ldm_vae.exploring.codec import Codec
from ldm_vae.exploring.diffusion import DiffusionDraw
from ldm_vae.exploring.gaussian import ChannelGaussian, CodeFrequencies, Draw, FullGaussian, PriorDraw
from ldm_vae.exploring.known import KnownLatents
from ldm_vae.exploring.prior import REAL_PRIOR, PriorGap, measure_gap
from ldm_vae.images.guard import SkippedImage
from ldm_vae.models.bottlenecks.quantised import Quantised
from ldm_vae.models.families.family import Family
from ldm_vae.system.telling import counted


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """How samples are wanted."""

    method: SampleMethod
    covariance: Covariance
    steps: int | None
    """Of the diffusion model's training; None: those of the probe's small budget."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class LatentSource:
    """What latents are drawn from."""

    draw: Draw
    method: str
    """`prior`, `gaussian`, `codes` or `diffusion`."""
    reason: str
    """In words, with what was measured."""
    gap: PriorGap | None
    """How far the known latents are from the prior; None where that can't be measured."""
    skipped: list[SkippedImage]
    """Pictures that couldn't be read."""


def check_method(method: SampleMethod, family: Family) -> None:
    """Raise where a method isn't for the autoencoder, before any long work.

    Raises:
        FieldError: It isn't.
    """
    name = family.class_name()
    require(
        method != "prior" or family.bottleneck.has_posterior,
        f"<method> prior is for VAEs, and {name} has no posterior; take gaussian or diffusion",
    )
    require(
        method != "codes" or isinstance(family.bottleneck, Quantised),
        f"<method> codes is for codebooks, and {name} has none; take gaussian",
    )


def choose_source(
    request: SampleRequest, codec: Codec, known: KnownLatents | None, *, resolution: int, work: Path
) -> LatentSource:
    """Choose the method, and fit it to what is known.

    Args:
        request: How samples are wanted.
        codec: The autoencoder.
        known: Latents; None: nothing is known, which leaves the prior.
        resolution: Side of the pictures, where no latents say it.
        work: Folder for what a training keeps.

    Raises:
        FieldError: The method needs latents, or doesn't fit them.
    """
    family, method = codec.family, request.method
    require(
        known is not None or method == "prior",
        f"<method> {method} needs <latents> to learn from; <method> prior needs none",
    )
    measurable = known is not None and known.has_spread and family.bottleneck.has_posterior
    gap = measure_gap(known) if known is not None and measurable else None
    if method == "auto":
        method = "prior" if gap is not None and gap.follows_prior else "gaussian"
    if method == "prior":
        draw: Draw = PriorDraw(_shape(family, resolution) if known is None else known.shape)
        reason = "the prior N(0, I)"
    else:
        assert known is not None
        draw, reason = _fit(method, request, codec, known, work=work)
    if isinstance(family.bottleneck, Quantised) and method != "codes":
        reason += ", each position then taken to its nearest code"
    return LatentSource(
        draw=draw,
        method=method,
        reason=f"{reason}; {_told_gap(family, gap)}",
        gap=gap,
        skipped=[] if known is None else list(known.skipped),
    )


def _shape(family: Family, resolution: int) -> tuple[int, int, int]:
    """Return the shape of the latents of square pictures."""
    require_divides(family.spatial_factor, resolution, name="resolution", whose="the model's factor")
    side = resolution // family.spatial_factor
    return family.latent_channels, side, side


def _fit(
    method: SampleMethod, request: SampleRequest, codec: Codec, known: KnownLatents, *, work: Path
) -> tuple[Draw, str]:
    """Return what is fitted to known latents, and what it is in words."""
    if method == "codes":
        bottleneck = codec.family.bottleneck
        assert isinstance(bottleneck, Quantised)
        frequencies = CodeFrequencies(known, bottleneck)
        used = f"{int((frequencies.counts > 0).sum()):,} of {len(frequencies.counts):,} are used"
        return frequencies, f"codes by how often {known.source} use them ({used})"
    if method == "diffusion":
        diffusion = DiffusionDraw(known, codec, steps=request.steps, seed=request.seed, work=work)
        steps = counted(diffusion.steps, "step")
        return diffusion, f"a small diffusion model (the probe's) trained {steps} on {known.source}"
    if request.covariance == "channel":
        return ChannelGaussian(known), f"a Gaussian with mean and standard deviation a channel of {known.source}"
    return FullGaussian(known), f"a Gaussian with mean and covariance of all elements of {known.source}"


def _told_gap(family: Family, gap: PriorGap | None) -> str:
    """Return what is known of the prior."""
    if not family.bottleneck.has_posterior:
        return f"{family.class_name()} has no posterior, so no prior to draw from"
    if gap is None:
        return "whether pictures' latents follow the prior isn't known"
    distance = f"pictures' latents lie at least {gap.nats:.3g} nats an element from the prior"
    if gap.follows_prior:
        return f"{distance}, and up to {REAL_PRIOR:g} they are taken to follow it"
    return f"{distance}, so samples of it would be unlike theirs"
