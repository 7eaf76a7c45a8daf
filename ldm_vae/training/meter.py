"""Sums of a step's figures, kept on the device and read every `log_steps`, so that no step waits for the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOSS_TERMS = ("rec", "perceptual", "kl", "g", "d")  # a step is skipped where one of these, or a gradient, isn't finite
FIGURES = (
    *LOSS_TERMS,
    "loss",
    "log_variance",
    "logits_real",
    "logits_fake",
    "grad_norm",
    "disc_grad_norm",
    "lam",
    "lam_clamped",
    "adversarial",
)
CHECKED = (*LOSS_TERMS, "gradient")


@dataclass(frozen=True, kw_only=True)
class MeterReading:
    """What happened since the last reading."""

    means: dict[str, float]  # over the finite steps
    num_finite: int
    num_adversarial: int  # finite steps with a discriminator
    num_skipped: int  # steps skipped, not being finite
    nonfinite: dict[str, int]  # in how many steps each term wasn't finite
    row: int  # skipped steps in a row, up to now


class Meter:
    """All tensors, float64, the same on every process; part of the checkpoint."""

    def __init__(self, *, device: torch.device):
        self.sums = torch.zeros(len(FIGURES), dtype=torch.float64, device=device)
        self.counts = torch.zeros(3 + len(CHECKED), dtype=torch.float64, device=device)

    def update(self, figures: dict[str, Tensor], *, finite_terms: Tensor) -> Tensor:
        """Add a step.

        Args:
            figures: a scalar for each of FIGURES, over the global batch.
            finite_terms: [len(CHECKED)], bool.
        Returns:
            Whether the step is finite: [], bool, on the device.
        """
        finite = finite_terms.all()
        values = torch.stack([figures[name].double() for name in FIGURES])
        self.sums += torch.where(finite, values, 0.0)
        row = torch.where(finite, 0.0, self.counts[2] + 1)
        self.counts[0] += finite
        self.counts[1] += ~finite
        self.counts[2] = row
        self.counts[3:] += ~finite_terms
        return finite

    def read(self) -> MeterReading:
        """Read and start anew, all but the row; the one wait for the device."""
        sums, counts = self.sums.tolist(), self.counts.tolist()
        self.sums.zero_()
        self.counts[:2].zero_()
        self.counts[3:].zero_()
        totals = dict(zip(FIGURES, sums, strict=True))
        return MeterReading(
            means={name: value / max(counts[0], 1.0) for name, value in totals.items() if name != "adversarial"},
            num_finite=int(counts[0]),
            num_adversarial=int(totals["adversarial"]),
            num_skipped=int(counts[1]),
            nonfinite={name: int(n) for name, n in zip(CHECKED, counts[3:], strict=True) if n},
            row=int(counts[2]),
        )

    def state(self) -> dict[str, Tensor]:
        """Tensors for the checkpoint."""
        return {"meter.sums": self.sums, "meter.counts": self.counts}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up a checkpoint's sums."""
        self.sums.copy_(state["meter.sums"])
        self.counts.copy_(state["meter.counts"])
