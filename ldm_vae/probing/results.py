"""What probes found, with its uncertainty, and how autoencoders compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_vae.probing.folder import TABLE
from ldm_vae.system.markdown import markdown_table, markdown_text

# Of Student's distribution, two-sided 95 %, by degrees of freedom; from 10 on within 0.1 of the last.
_T = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of an autoencoder's probe."""

    seed: int
    seconds: float
    """That training and drawing took, of this start."""
    scores: dict[str, float]
    """Distances of its samples from the pictures."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was found of one autoencoder."""

    vae: str
    """As it was given."""
    name: str
    vae_fingerprint: str
    factor: int
    latent_shape: list[int]
    panel: dict[str, Any] | None
    """None where it wasn't asked for."""
    reconstruction: dict[str, float]
    """Distances of the reconstructions, below which no samples come but by chance."""
    trainings: list[Training]

    def mean(self, score: str) -> float:
        """Return the mean of a score over the seeds."""
        return sum(training.scores[score] for training in self.trainings) / len(self.trainings)

    def variance(self, score: str) -> float:
        """Return the unbiased variance of a score over the seeds; 0 for one."""
        mean, count = self.mean(score), len(self.trainings)
        return sum((training.scores[score] - mean) ** 2 for training in self.trainings) / max(1, count - 1)

    @property
    def seconds(self) -> float:
        """Return the cost of all trainings."""
        return sum(training.seconds for training in self.trainings)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An autoencoder beside the reference, by one score."""

    difference: float
    """Mean score less the reference's: negative is better."""
    margin: float
    """Half the 95 % interval of the difference; infinite where there is one seed."""

    def __str__(self) -> str:
        """Return `better`, `worse` or `not told apart`."""
        if not abs(self.difference) > self.margin:
            return "not told apart"
        return "better" if self.difference < 0 else "worse"


def compare(probed: Probed, reference: Probed, *, among: Sequence[Probed], score: str) -> Verdict:
    """Compare two autoencoders by a score.

    The spread of a training is taken to be the same for all, so that its estimate pools the seeds of all that were
    probed in the call: s² is the mean of their variances, and the interval t·s·sqrt(1/k + 1/k) with Student's t.
    """
    seeds = len(probed.trainings)
    freedom = (seeds - 1) * len(among)
    pooled = sum(each.variance(score) for each in among) / len(among)
    margin = _T[min(freedom, len(_T) - 1)] * math.sqrt(pooled * 2 / seeds) if freedom else math.inf
    return Verdict(difference=probed.mean(score) - reference.mean(score), margin=margin)


def probe_table(probed: Sequence[Probed], *, scores: Sequence[str]) -> str:
    """Return a Markdown table, the best autoencoder first by the first score, the reference being the first given."""
    reference = probed[0]
    header = ["vae", "latent", *(f"{score} (lower is better)" for score in scores[:1]), *scores[1:]]
    rows = [[*header, "reconstructions", "beside the reference", "verdict", "seconds"]]
    for each in sorted(probed, key=lambda each: _order(each.mean(scores[0]))):
        verdict = compare(each, reference, among=probed, score=scores[0])
        beside = f"{verdict.difference:+.4g} ± {verdict.margin:.2g}"
        rows.append(
            [
                markdown_text(each.name),
                "x".join(map(str, each.latent_shape)),
                *(f"{each.mean(score):.4g} ± {math.sqrt(each.variance(score)):.2g}" for score in scores),
                f"{each.reconstruction[scores[0]]:.4g}",
                "reference" if each is reference else beside,
                "" if each is reference else str(verdict),
                f"{each.seconds:.0f}",
            ]
        )
    return markdown_table(rows)


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


@dataclass(frozen=True, kw_only=True)
class ProbeSummary:
    """What `probe` found and where it is; `str()` is what the command line prints."""

    probed: list[Probed]
    """The reference first."""
    table: str
    metrics: Path
    report: Path | None
    """None where none was asked for."""
    problem: str | None
    """In one line, why the figures tell nothing; None where they do."""

    def __str__(self) -> str:
        """Return the tables and where the files are."""
        report = "" if self.report is None else f"\nreport: {self.report}"
        return f"{self.table}\n\nmetrics: {self.metrics}\ntable: {self.metrics.with_name(TABLE)}{report}"
