"""What a person should know of a run's figures: non-finite steps, and a GAN that loses its balance."""

from __future__ import annotations

from ldm_vae.training.meter import MeterReading

BLIND = {"hinge": 1.0, "vanilla": 0.6931}  # discriminator's loss where it sees nothing; 0 where it sees everything
WINNING, LOSING = 0.1, 0.95  # parts of that


class NonFiniteError(RuntimeError):
    """A row of updates that were not finite."""


class Health:
    """Says each thing when it begins, not at every report."""

    def __init__(self, *, disc_loss: str, adaptive: bool, max_nonfinite_steps: int):
        self.blind = BLIND[disc_loss]
        self.adaptive = adaptive  # whether lam is measured
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
        if "d" in reading.means:
            verdict = self.judge(reading.means)
            if verdict != self._last:
                means = reading.means
                said.append(
                    f"step {step}: GAN: {verdict} (D's loss {means['d']:.2g}, {self.blind:.2g} if blind; "
                    f"lam {means['lam']:.3g})"
                )
            self._last = verdict
        return said

    def judge(self, means: dict[str, float]) -> str:
        """The state of the GAN in words."""
        if self.adaptive and means["lam_clamped"] > 0.5:
            return "lam is at its clamp: hardly any of D's gradient reaches the generator; D may have saturated"
        if means["d"] < WINNING * self.blind:
            return "D is winning: it tells nearly all patches apart; a lower train.disc_learning_rate may help"
        if means["d"] > LOSING * self.blind:
            return "D is losing: it can't tell real from reconstructed yet"
        return "D and the generator are in balance"
