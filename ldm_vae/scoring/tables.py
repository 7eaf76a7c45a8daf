"""Scores as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ldm_vae.scoring.results import ScoredPicture, ScoreResult
from ldm_vae.system.markdown import markdown_table, markdown_text

MAX_ROWS = 50
"""The most pictures in the table."""


def format_scores(results: Mapping[str, ScoreResult], *, num_normal: int, num_data: int, quantile: float) -> str:
    """Return a Markdown table, a row a score."""
    has_areas = any(result.detection is not None for result in results.values())
    header = ["score", "unit", f"threshold ({quantile:g})", f"normal above, of {num_normal}", f"above, of {num_data}"]
    rows = [[*header, *(["AUROC", "AUPRC"] if has_areas else [])]]
    for name, result in results.items():
        found = result.detection
        areas = [] if not has_areas else ["", ""] if found is None else [f"{found.auroc:.3f}", f"{found.auprc:.3f}"]
        counts = [str(result.normal_above), str(result.data_above)]
        rows.append([name, result.unit, f"{result.threshold:.4g}", *counts, *areas])
    return markdown_table(rows)


def format_pictures(pictures: Sequence[ScoredPicture], *, ranked_by: str) -> str:
    """Return a Markdown table of the first `MAX_ROWS` pictures; a score above its threshold is bold."""
    shown = pictures[:MAX_ROWS]
    has_labels = any(picture.label is not None for picture in pictures)
    names = list(shown[0].scores) if shown else []
    rows = [["", "picture", *(["label"] if has_labels else []), *names]]
    for place, picture in enumerate(shown, 1):
        values = [
            f"**{value:.4g}**" if picture.above[name] else f"{value:.4g}" for name, value in picture.scores.items()
        ]
        label = [markdown_text(picture.label or "")] if has_labels else []
        rows.append([str(place), markdown_text(picture.name), *label, *values])
    rest = len(pictures) - len(shown)
    more = f"\n\n{rest} more in scores.jsonl" if rest else ""
    return f"pictures by {ranked_by}, the highest first; bold: above the threshold\n\n{markdown_table(rows)}{more}"
