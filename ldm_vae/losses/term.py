"""A term of the objective, and its weight: a number, or a ramp over the run's updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A weight that goes in a straight line from `start`, which it has up to `from_step`, to `end`, which it has from
    `to_step` on.

    Its value is a Python number that depends on the update's number alone: every process has the same without asking
    the others, a resumed run goes on with it, and no compiled network is compiled anew when it changes.
    """

    start: float
    end: float
    from_step: int
    to_step: int

    def at(self, step: int) -> float:
        """Return the weight in the update after `step` updates."""
        if step >= self.to_step:
            return self.end
        progress = max(0.0, (step - self.from_step) / (self.to_step - self.from_step))
        return self.start + progress * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of what the autoencoder minimises.

    From the name follow the figure in metrics.jsonl, the check that it is finite, and the sums in the checkpoint.
    """

    name: str
    """Column in metrics.jsonl, where the term is shown without its weight, and its name in NonFiniteError."""
    weight: float | Schedule
    on: Literal["images", "latents"]
    """What it is differentiated to first. `images`: the reconstruction y, and from there through decoder and encoder
    together with the adversarial gradient. `latents`: through the encoder, and whatever else made it."""
    of: Callable[..., Tensor]
    """Returns a scalar, the mean over a micro-batch, that doesn't grow with the resolution. Terms on images are called
    with (images, y), both [B, C, H, W] in [-1, 1]; terms on latents with (output, images), where `output` is what the
    trainable autoencoder returned and `images` are those that were encoded."""
    frozen: nn.Module | None = None
    """A network that the term looks through and that isn't trained: it is compiled with the others."""
    network: nn.Module | None = None
    """A network that is trained with the term, as a child of the trainable autoencoder: DDP averages its gradients,
    the optimizer and the checkpoint have it. For terms on latents only: one on images sends no gradient but to y."""

    def __post_init__(self) -> None:
        assert self.network is None or self.on == "latents", f"{self.name}: a trained network needs a term on latents"

    def weight_at(self, step: int) -> float:
        """Return the weight in the update after `step` updates."""
        return self.weight.at(step) if isinstance(self.weight, Schedule) else self.weight
