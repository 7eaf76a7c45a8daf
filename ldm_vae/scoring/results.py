"""Scores from figures, their thresholds, and how each was measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldm_vae.config.commands.score import ScoreOptions
from ldm_vae.config.rules import require
from ldm_vae.evaluation.results import Protocol
from ldm_vae.metrics.anomaly import Detection, calibrated_variance, detection, gaussian_bits, threshold
from ldm_vae.scoring.complexity import describe_compressor
from ldm_vae.scoring.labels import Labels
from ldm_vae.scoring.measure import Figures, Measured
from ldm_vae.system.float64 import float64_tensor

PROTOCOL_VERSION = 1
"""Raised whenever a score changes its meaning under its old name."""
PARADOX = (
    "likelihoods of whole pictures rank simple foreign pictures as more normal than the training's own (Nalisnick et "
    "al. 2019): a low value alone doesn't say that a picture is normal"
)


@dataclass(frozen=True, kw_only=True)
class ScoreKind:
    """A score: what it is, and how it comes from a picture's figures."""

    unit: str
    protocol: str
    of: Callable[[Mapping[str, float]], float]


def score_kinds(
    options: ScoreOptions, protocol: Protocol, *, variance: float | None
) -> tuple[dict[str, ScoreKind], dict[str, str]]:
    """Return the scores that there are, by name, and why others are left out.

    Args:
        options: The command's.
        protocol: What the pictures were, and which network saw them.
        variance: Of the Gaussian likelihood, in squared levels; None where there is no posterior.

    Raises:
        FieldError: The score that pictures are to be put in order by is left out.
    """
    window = f"largest mean over a window of {options.peak_window}x{options.peak_window} pixels"
    squares = "squared error of the reconstruction, mean over channels"
    kinds = {
        "pixel": ScoreKind(
            unit="levels", protocol=f"root of the mean over pixels; {squares}", of=lambda figures: figures["pixel"]
        ),
        "pixel_peak": ScoreKind(
            unit="levels", protocol=f"root of the {window}; {squares}", of=lambda figures: figures["pixel_peak"]
        ),
    }
    missing: dict[str, str] = {}
    seen = protocol.record()["perceptual"]
    if protocol.perceptual is None:
        missing |= dict.fromkeys(("perceptual", "perceptual_peak"), "there is no network for a perceptual distance")
    else:
        how = f"{seen}{protocol.seen}, of picture and reconstruction"
        kinds["perceptual"] = ScoreKind(unit="", protocol=how, of=lambda figures: figures["perceptual"])
        kinds["perceptual_peak"] = ScoreKind(
            unit="",
            protocol=f"{window} of the distance's map, in which each depth's is enlarged bilinearly; {how}",
            of=lambda figures: figures["perceptual_peak"],
        )
    if variance is None:
        reason = "the autoencoder has no posterior, so there is no divergence and no bound on a likelihood"
        missing |= dict.fromkeys(("negative_elbo", "complexity_corrected"), reason)
    else:
        kinds |= _bounds(options, variance)
    chosen = options.rank_by
    require(chosen not in missing, f"<rank_by> is {chosen}, but {missing.get(chosen)}; take another score")
    return kinds, missing


def _bounds(options: ScoreOptions, variance: float) -> dict[str, ScoreKind]:
    def negative_elbo(figures: Mapping[str, float]) -> float:
        return _distortion_bits(figures, variance) + figures["kl_bits"]

    bound = (
        f"bits an element of the picture that its negative ELBO is: -log2 of a Gaussian about the decoded posterior "
        f"sample, of the variance that makes the normal pictures likeliest (likelihood), of 8-bit levels with uniform "
        f"noise of one level, exact in expectation; mean of {options.posterior_samples} samples whose noise is "
        f"a function of the pixels; plus the posterior's divergence from N(0, 1)"
    )
    return {
        "negative_elbo": ScoreKind(unit="bits/element", protocol=f"{bound}; {PARADOX}", of=negative_elbo),
        "complexity_corrected": ScoreKind(
            unit="bits/element",
            protocol=f"negative_elbo less the bits an element of the lossless file "
            f"({describe_compressor(options.compressor)}), S of Serrà et al. 2020 with the ELBO for the likelihood; "
            f"{bound}",
            of=lambda figures: negative_elbo(figures) - figures["complexity_bits"],
        ),
    }


def _distortion_bits(figures: Mapping[str, float], variance: float) -> float:
    return gaussian_bits(float64_tensor([figures["squared_error"]]), variance=variance).item()


def ranking(kinds: Mapping[str, ScoreKind], rank_by: str) -> str:
    """Return the score that pictures are put in order by."""
    if rank_by != "auto":
        return rank_by
    return "perceptual" if "perceptual" in kinds else "pixel"


def likelihood_variance(normal: Measured) -> float | None:
    """Return the variance of the likelihood that suits the normal pictures best; None without a posterior."""
    if any("squared_error" not in figures.values for figures in normal.figures.values()):
        return None
    return calibrated_variance(normal.column("squared_error"))


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """One score of all pictures."""

    unit: str
    protocol: str
    threshold: float
    normal_above: int
    """Normal pictures above the threshold."""
    data_above: int
    """Pictures of the data above it."""
    detection: Detection | None
    """None without labels of both kinds."""

    def record(self) -> dict[str, Any]:
        """Return it for metrics.json."""
        found = self.detection
        areas = {} if found is None else {"auroc": found.auroc, "auprc": found.auprc}
        return {
            "unit": self.unit,
            "threshold": self.threshold,
            "normal_above": self.normal_above,
            "data_above": self.data_above,
            **areas,
            "protocol": self.protocol,
        }


@dataclass(frozen=True, kw_only=True)
class ScoredPicture:
    """A picture with its scores."""

    index: int
    name: str
    size: tuple[int, int]
    label: str | None
    scores: dict[str, float]
    above: dict[str, bool]
    """Whether each score is above its threshold; what is no number counts as above."""
    figures: dict[str, float]
    """What scores are made of, and the bits that a lossless compressor takes."""


def scored(
    index: int, figures: Figures, *, kinds: Mapping[str, ScoreKind], thresholds: Mapping[str, float], label: str | None
) -> ScoredPicture:
    """Return a picture's scores beside their thresholds."""
    scores = {name: kind.of(figures.values) for name, kind in kinds.items()}
    return ScoredPicture(
        index=index,
        name=figures.name,
        size=figures.size,
        label=label,
        scores=scores,
        above={name: not value <= thresholds[name] for name, value in scores.items()},
        figures={name: value for name, value in figures.values.items() if name not in scores},
    )


def thresholds_of(normal: Measured, kinds: Mapping[str, ScoreKind], *, quantile: float) -> dict[str, float]:
    """Return each score's quantile over the normal pictures."""
    values = [figures.values for figures in normal.figures.values()]
    return {
        name: threshold(float64_tensor([kind.of(each) for each in values]), quantile=quantile)
        for name, kind in kinds.items()
    }


def results_of(
    kinds: Mapping[str, ScoreKind],
    *,
    thresholds: Mapping[str, float],
    normal: Sequence[ScoredPicture],
    data: Sequence[ScoredPicture],
    labels: Labels,
) -> dict[str, ScoreResult]:
    """Return each score's counts above its threshold, and how well it tells labelled anomalies apart."""
    labelled = [(picture, labels.is_anomaly(picture.index)) for picture in data]
    known = [(picture, anomaly) for picture, anomaly in labelled if anomaly is not None]
    targets = torch.tensor([anomaly for _, anomaly in known], dtype=torch.bool)
    results = {}
    for name, kind in kinds.items():
        values = float64_tensor([picture.scores[name] for picture, _ in known])
        results[name] = ScoreResult(
            unit=kind.unit,
            protocol=kind.protocol,
            threshold=thresholds[name],
            normal_above=sum(picture.above[name] for picture in normal),
            data_above=sum(picture.above[name] for picture in data),
            detection=detection(values, targets),
        )
    return results


def is_finite(picture: ScoredPicture) -> bool:
    """Whether all of a picture's scores are numbers."""
    return all(math.isfinite(value) for value in picture.scores.values())


def protocol_record(options: ScoreOptions, protocol: Protocol, kinds: Mapping[str, ScoreKind]) -> dict[str, Any]:
    """Return what all scores share, with its SHA-256: scores of equal protocol and normal pictures compare."""
    content = {
        "version": PROTOCOL_VERSION,
        "resolution": options.resolution,
        "multiple_of": protocol.factor if options.resolution is None else None,
        "pictures": protocol.pictures,
        "quantile": options.quantile,
        "threshold": f"quantile {options.quantile:g} of the normal pictures' scores, linear between two of them",
        "areas": "AUROC and average precision of labelled pictures, by torchmetrics; anomalies are the positives",
        "peak_window": options.peak_window,
        "posterior_samples": options.posterior_samples,
        "compressor": options.compressor,
        "scores": {name: kind.protocol for name, kind in kinds.items()},
        "paradox": PARADOX,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}
