"""Sums of a step's figures, by name, kept on the device and read every `log_steps`: no step waits for the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.system.float64 import float64_tensor, float64_zeros, in_float64

ADVERSARIAL_FIGURES = ("g", "d", "logits_real", "logits_fake", "disc_grad_norm", "lam", "lam_clamped")
"""Figures of the discriminator, which are measured in the steps that it is part of."""


@dataclass(frozen=True, kw_only=True)
class MeterReading:
    """What happened since the last reading."""

    means: dict[str, float]
    """Mean of each figure over the finite steps in which it was measured; one that wasn't measured is left out."""
    num_finite: int
    """Number of updates made."""
    num_skipped: int
    """Number of updates skipped, not being finite."""
    nonfinite: dict[str, int]
    """For each checked name that ever wasn't finite: in how many steps."""
    row: int
    """Number of skipped updates in a row, up to now; a reading doesn't end the row."""


class Meter:
    """Sums in float64, the same on every process; part of the checkpoint.

    Args:
        names: Figures that are averaged.
        checked: Names of what has to be finite.
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
        """Add a step.

        Args:
            figures: Scalars over the global batch, by name; those that the step didn't measure are left out.
            finite: [len(checked)], bool.

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
        """Read and start anew, all but the row; the one wait for the device."""
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
        """Skipped steps in a row, up to now; reading it waits for the device."""
        return int(self._steps[2])

    def state(self) -> dict[str, Tensor]:
        """Return tensors for the checkpoint, by the figures' names."""
        return {
            "meter.steps": self._steps,
            **{f"meter.figure.{name}": self._sums[:, i].clone() for i, name in enumerate(self.names)},
            **{f"meter.nonfinite.{name}": self._nonfinite[i].clone() for i, name in enumerate(self.checked)},
        }

    def load(self, state: Mapping[str, Tensor]) -> str | None:
        """Take up a checkpoint's sums; a figure that it doesn't have starts anew.

        Returns:
            A line that says which figures came or went, if any did.
        """
        self._steps.copy_(state["meter.steps"])
        for i, name in enumerate(self.names):
            self._sums[:, i] = state.get(f"meter.figure.{name}", torch.zeros(2)).to(self._sums)
        for i, name in enumerate(self.checked):
            self._nonfinite[i] = state.get(f"meter.nonfinite.{name}", torch.zeros(())).to(self._nonfinite)
        before = {key.removeprefix("meter.figure.") for key in state if key.startswith("meter.figure.")}
        came, went = sorted(set(self.names) - before), sorted(before - set(self.names))
        told = [f"{', '.join(names)} {verb}" for names, verb in ((came, "came"), (went, "went")) if names]
        return f"Figures are not those of the checkpoint: {'; '.join(told)}" if told else None

    def _mask(self, names: frozenset[str]) -> Tensor:
        """[len(names)], 1 for the figures that a step measured; made once for each set of them."""
        if names not in self._masks:
            values = [float(name in names) for name in self.names]
            self._masks[names] = float64_tensor(values, device=self._sums.device)
        return self._masks[names]
