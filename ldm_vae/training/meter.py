"""Sums of the steps' figures, by name. They stay on the device and are read every `log_steps`: no step waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.system.float64 import float64_zeros, in_float64

ADVERSARIAL_FIGURES = ("g", "d", "logits_real", "logits_fake", "disc_grad_norm", "lam", "lam_clamped")
"""Figures that only steps with a discriminator measure."""


@dataclass(frozen=True, kw_only=True)
class MeterReading:
    """What happened since the last reading."""

    means: dict[str, float]
    """Mean of each figure over the finite steps that measured it. A figure that no step measured is left out."""
    num_finite: int
    """Number of updates made."""
    num_skipped: int
    """Number of updates that were skipped because they were not finite."""
    nonfinite: dict[str, int]
    """Number of steps in which each checked figure was not finite; figures that always were are left out."""
    row: int
    """Number of skipped updates in a row, up to the last one. Reading the meter doesn't end the row."""


class Meter:
    """Adds up figures in float64. The sums are the same on every process, and part of the checkpoint.

    Args:
        names: Figures that are averaged.
        checked: Names of the figures that have to be finite.
        device: Where the sums are.
    """

    def __init__(self, names: Sequence[str], *, checked: Sequence[str], device: torch.device):
        self.names = tuple(names)
        self.checked = tuple(checked)
        self._sums = float64_zeros(2, len(self.names), device=device)  # sum; steps measured
        self._steps = float64_zeros(3, device=device)  # finite, skipped, skipped in a row
        self._nonfinite = float64_zeros(len(self.checked), device=device)
        self._masks: dict[frozenset[str], Tensor] = {}

    def update(self, figures: Mapping[str, Tensor], *, finite: Tensor) -> Tensor:
        """Add the figures of a step.

        Args:
            figures: Scalars over the global batch, by name; those that the step didn't measure are left out.
            finite: Whether each of the checked figures is finite: [len(checked)], bool.

        Returns:
            Whether the step is finite: [], bool, on the device.
        """
        assert figures.keys() <= set(self.names)
        step_is_finite = finite.all()
        here, finite = step_is_finite.to(self._sums.device), finite.to(self._sums.device)
        zero = torch.zeros_like(self._sums[0, 0])
        values = torch.stack([in_float64(figures[name]) if name in figures else zero for name in self.names])
        self._sums += torch.where(here, torch.stack([values, self._mask(frozenset(figures))]), 0.0)
        row = torch.where(here, 0.0, self._steps[2] + 1)
        self._steps[0] += here
        self._steps[1] += ~here
        self._steps[2] = row
        self._nonfinite += ~finite
        return step_is_finite

    def read(self) -> MeterReading:
        """Return what was added up, and start anew but for the row of skipped updates; this waits for the device."""
        (sums, measured), steps, nonfinite = self._sums.tolist(), self._steps.tolist(), self._nonfinite.tolist()
        self._sums.zero_()
        self._steps[:2].zero_()
        self._nonfinite.zero_()
        return MeterReading(
            means={name: total / n for name, total, n in zip(self.names, sums, measured, strict=True) if n},
            num_finite=int(steps[0]),
            num_skipped=int(steps[1]),
            nonfinite={name: int(n) for name, n in zip(self.checked, nonfinite, strict=True) if n},
            row=int(steps[2]),
        )

    @property
    def row(self) -> int:
        """Number of skipped steps in a row, up to the last one. Reading it waits for the device."""
        return int(self._steps[2])

    def state(self) -> dict[str, Tensor]:
        """Return the sums as tensors for the checkpoint, named by their figures."""
        return {
            "meter.steps": self._steps,
            **{f"meter.figure.{name}": self._sums[:, i].clone() for i, name in enumerate(self.names)},
            **{f"meter.nonfinite.{name}": self._nonfinite[i].clone() for i, name in enumerate(self.checked)},
        }

    def load(self, state: Mapping[str, Tensor]) -> str | None:
        """Take over a checkpoint's sums. A figure that the checkpoint doesn't have starts anew.

        Returns:
            A line that says which figures came or went; None where none did.
        """
        self._steps.copy_(state["meter.steps"])
        for i, name in enumerate(self.names):
            self._sums[:, i] = state.get(f"meter.figure.{name}", torch.zeros(2)).to(self._sums)
        for i, name in enumerate(self.checked):
            self._nonfinite[i] = state.get(f"meter.nonfinite.{name}", torch.zeros(())).to(self._nonfinite)
        before = {key.removeprefix("meter.figure.") for key in state if key.startswith("meter.figure.")}
        came, went = sorted(set(self.names) - before), sorted(before - set(self.names))
        changes = [f"{', '.join(names)} {verb}" for names, verb in ((came, "came"), (went, "went")) if names]
        return f"Figures are not those of the checkpoint: {'; '.join(changes)}" if changes else None

    def _mask(self, names: frozenset[str]) -> Tensor:
        """Return a tensor [len(names)] with 1 for the figures that a step measured; it is made once for each set."""
        if names not in self._masks:
            zero, one = torch.zeros_like(self._sums[0, 0]), torch.ones_like(self._sums[0, 0])
            self._masks[names] = torch.stack([one if name in names else zero for name in self.names])
        return self._masks[names]
