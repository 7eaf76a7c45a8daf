"""Settings of what is minimised: a mixin for the fields of each term; those of the discriminator are beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional, Union

from ldm_vae.config.adversarial import AdversarialFields
from ldm_vae.config.names import Alignment, LatentNoise, Likelihood, Perceptual, PixelDistance
from ldm_vae.config.rules import Options, at_least, between, local_path, positive, require


@dataclass(kw_only=True)
class Ramp(Options):
    """A weight that changes in a straight line, by updates or by parts of the run: give `to_step` or `to_fraction`."""

    start: float = 0.0
    """Weight before the line begins."""
    end: float
    """Weight once the line has ended."""
    from_step: Optional[int] = None
    """Updates before the line begins. Without it the line begins with the run."""
    to_step: Optional[int] = None
    """Updates after which the line has ended."""
    from_fraction: Optional[float] = None
    """Part of train.max_train_steps before the line begins. Without it the line begins with the run."""
    to_fraction: Optional[float] = None
    """Part of train.max_train_steps after which the line has ended."""
    cycles: int = positive(1)
    """Parts into which the line's updates are divided. With more than one, each part goes from `start` to `end` in its
    first half and stays there for its second (cyclical annealing)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            (self.to_step is None) != (self.to_fraction is None)
            and (self.from_step is None or self.to_step is not None)
            and (self.from_fraction is None or self.to_fraction is not None),
            "a ramp has either to_step (and from_step) or to_fraction (and from_fraction)",
        )
        if self.to_step is not None:
            require(
                0 <= (self.from_step or 0) < self.to_step,
                f"a ramp goes from from_step {self.from_step or 0} to to_step {self.to_step}; it must go forwards",
            )
        if self.to_fraction is not None:
            require(
                0 <= (self.from_fraction or 0) < self.to_fraction <= 1,
                f"a ramp goes from from_fraction {self.from_fraction or 0} to to_fraction {self.to_fraction}; it must "
                f"go forwards, in [0, 1]",
            )

    @property
    def numbers(self) -> tuple[float, float]:
        """The weights between which it goes, whose range is checked."""
        return self.start, self.end

    def steps(self, max_train_steps: int) -> tuple[int, int]:
        """Return the number of updates at which the line begins, and at which it has ended."""
        if self.to_step is not None:
            return self.from_step or 0, self.to_step
        assert self.to_fraction is not None
        first = round((self.from_fraction or 0) * max_train_steps)
        return first, max(first + 1, round(self.to_fraction * max_train_steps))


Weight = Union[float, Ramp]


@dataclass(kw_only=True)
class TermFields(Options):
    """Base of the fields of each term."""

    section: ClassVar[str] = "loss"


@dataclass(kw_only=True)
class PixelFields(TermFields):
    """The pixel distance, whose weight is 1, or 0 where there is a likelihood."""

    reconstruction: PixelDistance = "l1"
    """Pixel distance, averaged over all elements. With a likelihood it is reported and has no weight."""


@dataclass(kw_only=True)
class PerceptualFields(TermFields):
    """The distance in a frozen network's features."""

    perceptual: Perceptual = "lpips_vgg"
    """Network whose features the perceptual distance compares; `efficientnet_lite0` needs no download. `dinov2`,
    `dinov3` and `siglip2` are read from the folder perceptual_weights; of them all layers and tokens count."""
    perceptual_weights: Optional[str] = local_path(None)
    """Local file with the weights of the LPIPS trunk, which are otherwise taken from torch's usual cache, or
    downloaded into it; or the folder of a vision network, as transformers writes it."""
    perceptual_channels: list[int] = at_least(0, factory=list)
    """Channels that networks for photographs see, those of the alignment and the discriminator too, counted from 0:
    one, which is repeated, or three. Without them grey is repeated, and of RGBA the colours are multiplied by alpha
    and compared over black and over white."""
    perceptual_weight: Weight = at_least(0, 1.0)
    """Weight of the perceptual distance beside the pixel distance: a number, or a ramp such as {start: 0, end: 1,
    to_step: 1000}."""


@dataclass(kw_only=True)
class KlFields(TermFields):
    """The rate of the posterior."""

    kl_weight: Weight = at_least(0, 1e-6)
    """Weight of the KL divergence, which is divided by the number of elements of an image: a number, or a ramp such as
    {start: 0, end: 1e-6, to_step: 10000} or {start: 1e-8, end: 1e-6, from_fraction: 0.1, to_fraction: 0.5}."""
    beta: Optional[Weight] = at_least(0, None)
    """Weight of the KL divergence under beta-VAE's name, in place of kl_weight. With a likelihood, and without a
    perceptual distance and a discriminator, beta 1 makes the loss the negative evidence lower bound, in nats a
    dimension."""
    free_bits: float = at_least(0, 0.0)
    """Nats an element that the KL divergence of each latent channel has for free, on the mean of the global batch."""
    capacity: Optional[Weight] = at_least(0, None)
    """Nats an element of the latent that the KL divergence is drawn to, from below and from above: a number, or a
    ramp. Without it the divergence is to be small."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.free_bits == 0 or self.capacity is None,
            "<loss.free_bits> and <loss.capacity> both bound the rate; take one of them",
        )
        require(
            self.beta is None or self.kl_weight == 1e-6,
            "<loss.beta> is <loss.kl_weight> by another name; give one of them",
        )

    @property
    def rate_weight(self) -> Weight:
        """Weight of the KL divergence, by whichever name it was given."""
        return self.kl_weight if self.beta is None else self.beta


@dataclass(kw_only=True)
class EquivarianceFields(TermFields):
    """Latents that are scaled, turned and mirrored as their images are."""

    eq_probability: float = between(0, 1, 0.0)
    """Part of the updates in which the latents are scaled and turned before they are decoded, and all losses compare
    with the images transformed alike (EQ-VAE)."""
    equivariance_weight: Weight = at_least(0, 0.0)
    """Weight of the pixel distance between a second decode, of transformed latents, and the images transformed alike.
    The ordinary losses stay as they are. With 0 there is no second decode."""
    consistency_weight: Weight = at_least(0, 0.0)
    """Weight of the squared difference between the latents of transformed images and the transformed latents, divided
    by the latents' variance."""
    equivariance_every: int = positive(1)
    """Number n for which the second decode and the consistency are part of every n-th update."""
    equivariance_scales: list[float] = between(0, 1, ends="(]", factory=lambda: [0.25, 0.375, 0.5, 0.625, 0.75, 0.875])
    """Parts of the side to which a transform scales, one of them in each update."""
    equivariance_rotations: list[int] = field(default_factory=lambda: [90, 180, 270])
    """Degrees by which a transform turns, one of them for each image: of 0, 90, 180 and 270."""
    equivariance_flips: bool = False
    """Let a transform mirror half of the images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.equivariance_scales) > 0, "<loss.equivariance_scales> is empty; [1.0] keeps the size")
        require(
            len(self.equivariance_rotations) > 0 and set(self.equivariance_rotations) <= {0, 90, 180, 270},
            f"<loss.equivariance_rotations> is {self.equivariance_rotations}; it must hold some of 0, 90, 180 and 270",
        )

    @property
    def compares_pairs(self) -> bool:
        """Whether latents and images are transformed for losses of their own."""
        return self.equivariance_weight != 0 or self.consistency_weight != 0


@dataclass(kw_only=True)
class SampleFields(TermFields):
    """What else is done to the latents before they are decoded, in training alone."""

    latent_noise: LatentNoise = "off"
    """Noise that is put on the latents z in training: `interpolative` gives (1 - u) z + u s n, `additive` z + u s n,
    and `relative` z + u s n times the standard deviation of the image's latents. u is drawn for each image from [0,
    1), n is standard normal, and s is latent_noise_strength. There is no noise where the decoder alone is trained."""
    latent_noise_strength: float = positive(1.0)
    """Largest standard deviation s of the latent noise."""
    low_pass: list[int] = at_least(0, factory=list)
    """Numbers of which one, k, is drawn for each image: of the cosine transform of each 8x8 block, the k highest
    diagonals, where u + v is 15 - k or more, are removed from latents and images alike. 0 removes nothing. Without
    numbers nothing is drawn or removed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            all(number <= 14 for number in self.low_pass),
            f"<loss.low_pass> is {self.low_pass}; above 14 nothing would be left of an 8x8 block",
        )


@dataclass(kw_only=True)
class SpectrumFields(TermFields):
    """Latents whose spectrum is that of their images, flattened."""

    spectrum_weight: Weight = at_least(0, 0.0)
    """Weight of the divergence of the latents' radial spectrum from that of the image, resized to the latents."""
    spectrum_flattening: float = at_least(0, 1.0)
    """Exponent of the frequency that the image's power is multiplied with before both are compared."""


@dataclass(kw_only=True)
class CommitmentFields(TermFields):
    """How near the encoder's output stays to its codes."""

    commitment_weight: Weight = at_least(0, 0.25)
    """Weight of the commitment of a quantised bottleneck, the mean squared distance of the encoder's output from the
    codes (vq) or from their range (fsq): a number or a ramp."""


@dataclass(kw_only=True)
class ImitationFields(TermFields):
    """How near latents come to a teacher's."""

    imitation_weight: Weight = at_least(0, 1.0)
    """Weight of the mean squared distance of the encoder's latents, and of their standard deviations where they have
    any, from those of `model.teacher`, with `model.teach_encoder`: a number or a ramp."""


@dataclass(kw_only=True)
class AlignmentFields(TermFields):
    """Latents that resemble the features of a frozen vision network (VA-VAE)."""

    alignment: Alignment = "none"
    """Frozen network with whose features the latents are aligned. `efficientnet_lite0` needs no download; the others
    are read from the folder alignment_weights."""
    alignment_weights: Optional[str] = local_path(None)
    """Folder of the network, as transformers writes it: config.json, model.safetensors, preprocessor_config.json."""
    alignment_weight: Weight = at_least(0, 0.1)
    """Size of the alignment's gradient at the encoder's last layer, as a part of what comes there from the
    reconstruction: a number, or a ramp. Both are measured in the update before."""
    alignment_cosine_margin: float = between(0, 1, 0.5)
    """How far a projected latent's cosine to the feature at its place may lie below 1 at no cost."""
    alignment_distance_margin: float = between(0, 1, 0.25)
    """How far the cosine of two projected latents may differ from that of the features at their places at no cost."""


@dataclass(kw_only=True)
class LikelihoodFields(TermFields):
    """How images are distributed about their reconstruction, and how widely."""

    likelihood: Likelihood = "none"
    """Distribution of 8-bit pictures about their reconstruction, with one learnt log-variance s: its mean negative
    log-likelihood, in nats a dimension, takes the place of the pixel distance. `gaussian` and `laplace` are densities
    of the dequantised picture, `logistic` is discretised. `ldm-vae density` needs one, with perceptual none and
    disc_weight 0, and beta 1 to be trained for what it measures."""
    learn_logvar: bool = False
    """Divide the terms on images by exp(s), with a learnt s that is added, as latent diffusion does. With l1 and no
    other term on images this is a Laplace likelihood of scale exp(s), up to a constant."""
    logvar_init: float = 0.0
    """First value of s. It moves by about the learning rate an update, so begin near its end: -4 is a standard
    deviation of 0.14 in [-1, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.likelihood == "none" or not self.learn_logvar,
            f"<loss.likelihood> {self.likelihood} learns a log-variance of its own; leave <loss.learn_logvar> out",
        )


@dataclass(kw_only=True)
class LossConfig(
    AlignmentFields,
    SpectrumFields,
    SampleFields,
    EquivarianceFields,
    ImitationFields,
    CommitmentFields,
    AdversarialFields,
    LikelihoodFields,
    KlFields,
    PerceptualFields,
    PixelFields,
):
    """The objective: the published kl-f8 loss divided by the image's number of elements."""

    # A dataclass lists the fields of its last base first.
