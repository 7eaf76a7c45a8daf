"""A term of the objective, and its weight: a number, or a ramp over the run's updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A weight that changes in a straight line.

    It is `start` up to `from_step`, and `end` from `to_step` on. Its value is a Python number that depends on the
    update's number alone: every process has the same value without asking the others, a resumed run goes on with it,
    and no compiled network is compiled anew when it changes.
    """

    start: float
    end: float
    from_step: int
    to_step: int
    cycles: int = 1
    """Parts of the line, each of which goes from `start` to `end` in its first half (Fu et al. 2019, "Cyclical
    Annealing Schedule")."""

    def at(self, step: int) -> float:
        """Return the weight in the update after `step` updates."""
        if step >= self.to_step:
            return self.end
        progress = max(0.0, (step - self.from_step) / (self.to_step - self.from_step))
        if self.cycles > 1:
            progress = min(1.0, 2 * (progress * self.cycles % 1))
        return self.start + progress * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of what the autoencoder minimises.

    The figure in metrics.jsonl, the check that the value is finite, and the sums in the checkpoint go by the term's
    name.
    """

    name: str
    """Column in metrics.jsonl, where the term stands without its weight, and the term's name in NonFiniteError."""
    weight: float | Schedule
    on: Literal["images", "likelihood", "latents", "encoder"]
    """What the term compares. A term on `images` is differentiated down to the reconstruction y, and from there goes
    through decoder and encoder together with the adversarial gradient. A term on the `likelihood` is one on images
    that depends on the learnt log-variance s too. A term on `latents` is differentiated through
    the encoder, and through whatever else its value was computed by. A term on the `encoder` compares latents alone;
    its weight is multiplied by a ratio of gradients at the encoder's last layer."""
    of: Callable[..., Tensor | None]
    """Returns a scalar, a mean over the micro-batch that doesn't grow with the resolution; None in updates that the
    term isn't part of, which are the same for all micro-batches and processes. Terms on images are called
    with (images, y), both [B, C, H, W] in [-1, 1], and a term on the likelihood with (images, y, s); terms on latents
    with (output, images), where `output` is what the trainable autoencoder returned and `images` are those that were
    encoded; a term on the encoder with (z, images)."""
    frozen: nn.Module | None = None
    """A network whose features the term compares. It is not trained, and is compiled with the others."""
    network: nn.Module | None = None
    """A network that is trained with the term, as a child of the trainable autoencoder: DDP averages its gradients,
    and its weights are in the optimizer and the checkpoint. A term on images can't have one, since it sends its
    gradient to y alone."""

    def __post_init__(self) -> None:
        on_images = self.on in ("images", "likelihood")
        assert self.network is None or not on_images, f"{self.name}: a trained network needs a term on latents"

    def weight_at(self, step: int) -> float:
        """Return the weight in the update after `step` updates."""
        return self.weight.at(step) if isinstance(self.weight, Schedule) else self.weight
