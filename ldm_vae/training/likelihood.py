"""What a run says of the density of pictures: its likelihood, or why its autoencoder gives none. Exports keep it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

from ldm_vae.config.loss import Ramp
from ldm_vae.config.names import Likelihood
from ldm_vae.config.run import Config
from ldm_vae.training.run_autoencoder import RunAutoencoder


@dataclass(frozen=True, kw_only=True)
class LikelihoodRecord:
    """The likelihood that an autoencoder was trained with."""

    kind: Likelihood
    """The distribution of pictures about their reconstruction; `none` where the training had none."""
    logvar: float
    """Log-variance of that distribution, whose unit is that of pictures in [-1, 1]."""
    beta: float
    """Weight that the KL divergence had in the end; with 1 the training was for the evidence lower bound."""
    obstacle: str | None
    """Why there is no density, such as what else the decoder was trained for. None where there is one."""

    @classmethod
    def of(cls, run: RunAutoencoder) -> LikelihoodRecord:
        """Return that of a run's checkpoint; of a run of several stages the checkpoint's stage counts."""
        loss = run.config.loss
        weight = loss.rate_weight
        return cls(
            kind=loss.likelihood,
            logvar=run.likelihood_logvar,
            beta=weight.end if isinstance(weight, Ramp) else weight,
            obstacle=density_obstacle(run.config),
        )

    @classmethod
    def read(cls, fields: Any) -> LikelihoodRecord:
        """Return the record whose fields a file holds.

        Raises:
            ValueError: They are those of something else.
        """
        try:
            record = cls(**fields)
            kinds = [kind for kind in get_args(Likelihood) if kind != "none" or record.obstacle is not None]
            if record.kind in kinds and all(map(math.isfinite, (record.logvar, record.beta))):
                return record
        except TypeError:
            pass
        raise ValueError("these aren't the fields of a likelihood")

    @property
    def std(self) -> float:
        """Standard deviation of the distribution, in [-1, 1]."""
        return math.exp(0.5 * self.logvar)


def density_obstacle(config: Config) -> str | None:
    """Return why a model trained by such settings gives no density of pictures; None where it does."""
    loss = config.loss
    if loss.likelihood == "none":
        return "it was trained without a likelihood; train with loss.likelihood gaussian, laplace or logistic"
    if loss.disc_weight > 0:
        return (
            f"it was trained against a discriminator (loss.disc_weight {loss.disc_weight:g}), for reconstructions "
            f"that look real, not for likely ones; train with loss.disc_weight 0"
        )
    if loss.perceptual != "none" and loss.perceptual_weight != 0:
        return (
            f"it was trained for a perceptual distance too (loss.perceptual {loss.perceptual}), which is no density "
            f"of pixels; train with loss.perceptual none"
        )
    if config.model.teacher is not None:
        return "its latents are a teacher's (model.teacher), which no prior was fitted to; train without one"
    return None
