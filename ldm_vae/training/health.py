"""Warnings about a run's figures: updates that aren't finite, and a GAN that loses its balance."""

from __future__ import annotations

from ldm_vae.config.rules import RunError
from ldm_vae.losses.rate import PosteriorSummary
from ldm_vae.training.meter import MeterReading

# The discriminator's loss where it can't tell the images apart at all; it is 0 where it tells all of them apart.
BLIND = {"hinge": 1.0, "vanilla": 0.6931}
WINNING, LOSING = 0.1, 0.95  # parts of the blind loss, below and above which the balance is lost
COLLAPSED = 0.1  # part of a codebook's codes in use, below which it is as good as a smaller one


class NonFiniteError(RunError):
    """Too many updates in a row were not finite."""


class Health:
    """Tells of each condition when it begins, not at every report."""

    def __init__(self, *, disc_loss: str, adaptive: bool, max_nonfinite_steps: int):
        self.blind = BLIND[disc_loss]
        self.adaptive = adaptive  # lam is measured, not constant
        self.max_nonfinite_steps = max_nonfinite_steps
        self._last_verdict = ""
        self._last_inactive = 0
        self._codebook_collapsed = False

    def lines(self, reading: MeterReading, *, posterior: PosteriorSummary | None = None, step: int) -> list[str]:
        """Return the lines to print after a report.

        Raises:
            NonFiniteError: Too many updates in a row were skipped. The message names the terms.
        """
        lines = []
        if reading.num_skipped:
            terms = ", ".join(f"{name} in {times}" for name, times in reading.nonfinite.items())
            updates = "1 update was" if reading.num_skipped == 1 else f"{reading.num_skipped} updates were"
            lines.append(f"step {step}: {updates} not finite and skipped: {terms}")
        if reading.row >= self.max_nonfinite_steps:
            raise NonFiniteError(
                f"{reading.row} updates in a row, up to step {step}, were not finite ({', '.join(reading.nonfinite)}) "
                f"and were skipped; the weights are those before them, and the last checkpoint is whole. A lower "
                f"<train.learning_rate> or <train.mixed_precision> no may help"
            )
        lines += self._codebook_lines(reading.means, step=step)
        if "d" in reading.means:
            verdict = self.judge(reading.means)
            if verdict != self._last_verdict:
                means = reading.means
                lines.append(
                    f"step {step}: GAN: {verdict} (D's loss {means['d']:.2g}, {self.blind:.2g} if blind; "
                    f"lam {means['lam']:.3g})"
                )
            self._last_verdict = verdict
        if posterior is not None:
            lines += self._collapse(posterior, step=step)
        return lines

    def _collapse(self, posterior: PosteriorSummary, *, step: int) -> list[str]:
        """Tell of latent channels that carry nothing, where their number changes."""
        channels = len(posterior.kl_per_channel)
        inactive = channels - posterior.active_channels
        before, self._last_inactive = self._last_inactive, inactive
        if inactive == before:
            return []
        if inactive == 0:
            return [f"step {step}: posterior: all {channels} latent channels are active"]
        return [
            f"step {step}: posterior: {inactive} of {channels} latent channels carry nothing of the images; a lower "
            f"loss.kl_weight, one that rises from 0, or loss.free_bits keeps them"
        ]

    def _codebook_lines(self, means: dict[str, float], *, step: int) -> list[str]:
        """Return a line where a codebook collapses, once until it has recovered."""
        usage = means.get("codebook_usage", 1.0)
        begins = usage < COLLAPSED and not self._codebook_collapsed
        self._codebook_collapsed = usage < COLLAPSED
        if not begins:
            return []
        return [
            f"step {step}: codebook: {usage:.1%} of the codes are in use (perplexity "
            f"{means['codebook_perplexity']:.4g}); a smaller model.codebook_dim or codebook_size, or fewer "
            f"model.fsq_levels, may help"
        ]

    def judge(self, means: dict[str, float]) -> str:
        """Return in words how the discriminator D and the generator stand."""
        if self.adaptive and means["lam_clamped"] > 0.5:
            return "lam is at its clamp: hardly any of D's gradient reaches the generator; D may have saturated"
        if means["d"] < WINNING * self.blind:
            return "D is winning: it tells nearly all patches apart; a lower train.disc_learning_rate may help"
        if means["d"] > LOSING * self.blind:
            return "D is losing: it can't tell real from reconstructed yet"
        return "D and the generator are in balance"
