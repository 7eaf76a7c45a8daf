"""What a person should know of a run's figures: non-finite steps, and a GAN that loses its balance."""

from __future__ import annotations

from ldm_vae.training.meter import MeterReading

WINNING, LOSING = 0.1, 0.95  # discriminator losses; 1 (hinge) is that of one that sees nothing, 0 of a perfect one
VANILLA_BLIND = 0.6931


class NonFiniteError(RuntimeError):
    """A row of updates that were not finite."""


class Health:
    """Says each thing when it begins, not at every report."""

    def __init__(self, *, disc_loss: str, max_nonfinite_steps: int):
        self.blind = 1.0 if disc_loss == "hinge" else VANILLA_BLIND
        self.max_nonfinite_steps = max_nonfinite_steps
        self._last = ""

    def lines(self, reading: MeterReading, *, step: int) -> list[str]:
        """Lines to print after a report.

        Raises:
            NonFiniteError: where the row of skipped updates is too long, naming the terms.
        """
        said = []
        if reading.num_skipped:
            terms = ", ".join(f"{name} in {times}" for name, times in reading.nonfinite.items())
            said.append(f"step {step}: {reading.num_skipped} updates skipped, not being finite: {terms}")
        if reading.row >= self.max_nonfinite_steps:
            raise NonFiniteError(
                f"{reading.row} updates in a row, up to step {step}, were not finite ({', '.join(reading.nonfinite)}) "
                f"and were skipped; the weights are those before, the last checkpoint is whole. A lower "
                f"train.learning_rate or train.mixed_precision no may help"
            )
        if reading.num_adversarial == reading.num_finite > 0:
            verdict = self.judge(reading.means)
            if verdict != self._last:
                said.append(f"step {step}: {verdict}")
            self._last = verdict
        return said

    def judge(self, means: dict[str, float]) -> str:
        """The state of the GAN in words."""
        d = means["d"] / self.blind
        if means["lam_clamped"] > 0.5:
            return "GAN: lam is at its clamp: D's gradient hardly reaches the generator; D may have saturated"
        if d < WINNING:
            return f"GAN: D is winning (loss {means['d']:.2g}): it tells all patches apart; lower disc_learning_rate"
        if d > LOSING:
            return f"GAN: D is losing (loss {means['d']:.2g}): it can't tell real from reconstructed yet"
        return f"GAN: balanced (D's loss {means['d']:.2g}, lam {means['lam']:.3g})"
