"""The objective of the autoencoder.

It is the published kl-f8 loss (Rombach et al. 2022, appendix G) divided by the number of elements of an image: the
published weights carry over, and nothing grows with the resolution.

Notation, here and in training/step.py (docs/objective.md has the formulas with their sources):

    x    images [B, C, H, W] in [-1, 1], of N = C·H·W elements each
    z    latents, sampled from the posterior q(z given x) of mean and log-variance (`posterior_logvar`)
    y    the reconstruction, decoder(z)
    s    log-variance of the likelihood (`likelihood_logvar`), a scalar that may be trained
    g    adversarial loss of the generator, -mean D(y);  d: loss of the discriminator D
    W    weight of the decoder's last convolution
    lam  weight of g, from the gradients of both at W
    V    weight of the encoder's last layer, whose output the bottleneck takes
    lam_alignment  weight of the alignment, from the gradients at V
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm_vae.losses.adversarial import LogitAnchors, adaptive_weight, discriminator_loss
from ldm_vae.losses.alignment import AlignmentBalance
from ldm_vae.losses.rate import RateControl
from ldm_vae.losses.term import Term


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Scalars of one micro-batch."""

    total: Tensor
    """The weighted sum, which is differentiated."""
    figures: dict[str, Tensor]
    """Each term that the update has, by its name, without its weight."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The terms that are added up, and how the adversarial loss is balanced against those on images.

        loss = (sum of the terms on images) / exp(s) + s  +  sum of the terms on latents  +  lam · g
               + lam_alignment · alignment

    Where `learn_logvar` is off, the terms on images are added up as they are, and so is the term on the likelihood,
    which has s in it, where there is one.
    """

    terms: Sequence[Term]
    disc_weight: float = 0.5
    disc_loss: Literal["hinge", "vanilla"] = "hinge"
    learn_logvar: bool = False
    """Whether the terms on images are divided by exp(s)."""
    rate: RateControl | None = None
    """What the KL divergence's gradient goes by, where it goes by the update before."""
    balance: AlignmentBalance | None = None
    """What the alignment's weight goes by, where there is one."""
    lecam: LogitAnchors | None = None
    """What D's logits are drawn to, where they are."""
    lecam_weight: float = 0.0
    """Weight of how far they are from there."""
    r1_weight: float = 0.0
    """Weight of D's gradient penalty in the updates that have one."""

    def __post_init__(self) -> None:
        assert len(set(self.names)) == len(self.terms), f"two terms have one name: {self.names}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, those on images first."""
        order = ("images", "likelihood", "latents", "encoder")
        return tuple(term.name for on in order for term in self._terms_on(on))

    @property
    def trains_logvar(self) -> bool:
        """Whether s is trained."""
        return self.learn_logvar or bool(self._terms_on("likelihood"))

    @property
    def alignment(self) -> Term | None:
        """The term on the encoder; None where there is none."""
        return next(iter(self._terms_on("encoder")), None)

    @property
    def regularisers(self) -> tuple[str, ...]:
        """Names of what is added to D's loss."""
        return (*(["lecam"] if self.lecam is not None else []), *(["r1"] if self.r1_weight > 0 else []))

    @property
    def frozen_networks(self) -> dict[str, nn.Module]:
        """The frozen networks whose features terms compare, by the terms' names."""
        return {term.name: term.frozen for term in self.terms if term.frozen is not None}

    @property
    def trained_networks(self) -> dict[str, nn.Module]:
        """The networks that are trained with terms, by the terms' names."""
        return {term.name: term.network for term in self.terms if term.network is not None}

    def image_loss(self, images: Tensor, reconstruction: Tensor, *, likelihood_logvar: Tensor, step: int) -> Loss:
        """Return the loss that depends on the reconstruction alone.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstruction: The reconstruction y, of the same shape.
            likelihood_logvar: The scalar s; it counts where it is trained.
            step: Number of updates made, on which weights may depend.
        """
        loss = self._weighted("images", images, reconstruction, step=step)
        if self.learn_logvar:
            return Loss(total=loss.total / torch.exp(likelihood_logvar) + likelihood_logvar, figures=loss.figures)
        if not self.trains_logvar:
            return loss
        likelihood = self._weighted("likelihood", images, reconstruction, likelihood_logvar, step=step)
        return Loss(total=loss.total + likelihood.total, figures=loss.figures | likelihood.figures)

    def latent_loss(self, output: Any, images: Tensor, *, step: int) -> Loss:
        """Return the loss that depends on the latents.

        Args:
            output: What the trainable autoencoder returned.
            images: [B, C, H, W] in [-1, 1], those that were encoded.
            step: Number of updates made, on which weights may depend.
        """
        return self._weighted("latents", output, images, step=step)

    def discriminator_loss(self, logits_real: Tensor, logits_fake: Tensor, *, penalty: Tensor | None) -> Loss:
        """Return the loss that D is trained with.

        Args:
            logits_real: D(x), of any shape.
            logits_fake: D(y), of the same shape.
            penalty: `gradient_penalty` of D at x; None in updates without one.
        """
        figures = {"d": discriminator_loss(logits_real, logits_fake, kind=self.disc_loss)}
        total = figures["d"]
        if self.lecam is not None:
            figures["lecam"] = self.lecam.penalty(logits_real, logits_fake)
            total = total + self.lecam_weight * figures["lecam"]
        if penalty is not None:
            figures["r1"] = penalty
            total = total + 0.5 * self.r1_weight * penalty
        return Loss(total=total, figures=figures)

    def generator_weight(self, grad_reconstruction: Tensor, grad_generator: Tensor, *, num_elements: int) -> Tensor:
        """Return lam, from the global batch's gradients at the last layer's weight; see `adaptive_weight`."""
        return self.disc_weight * adaptive_weight(grad_reconstruction, grad_generator, num_elements=num_elements)

    def _terms_on(self, on: str) -> list[Term]:
        return [term for term in self.terms if term.on == on]

    def _weighted(self, on: str, *arguments: Any, step: int) -> Loss:
        terms = self._terms_on(on)
        measured = [(term, term.of(*arguments)) for term in terms]
        figures = {term.name: figure for term, figure in measured if figure is not None}
        weighted = [term.weight_at(step) * figures[term.name] for term in terms if term.name in figures]
        total: Any = sum(weighted) if weighted else torch.zeros((), device=arguments[-1].device)
        return Loss(total=total, figures=figures)
