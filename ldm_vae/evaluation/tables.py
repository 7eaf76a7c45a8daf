"""The Markdown tables of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from ldm_vae.evaluation.results import Evaluation
from ldm_vae.panel.measures import format_panel
from ldm_vae.system.markdown import markdown_table


def format_table(evaluations: Sequence[Evaluation]) -> str:
    """Return a Markdown table, a row an evaluation, a column a metric that any of them has."""
    columns = dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics)
    names = [name for name in columns if name not in ("kl", "latent_mean")]
    are_sounds = any("mel_frames" in evaluation.protocol for evaluation in evaluations)
    counted = ("frames", "sounds") if are_sounds else ("resolution", "images")
    rows = [["vae", *counted, *(f"{name} (dB)" if name == "psnr" else name for name in names)]]
    for evaluation in evaluations:
        resolution = "whole" if evaluation.resolution is None else str(evaluation.resolution)
        scores = [evaluation.metrics.get(name) for name in names]
        values = ["" if score is None else str(score) for score in scores]
        rows.append([evaluation.name, resolution, str(evaluation.num_images), *values])
    return markdown_table(rows)


def more_tables(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the table of the images' channels, if there is one, and one for each size of panels."""
    by_channel = _format_channels(evaluations)
    tables = [] if by_channel is None else [f"channels of the images\n\n{by_channel}"]
    for resolution in dict.fromkeys(evaluation.resolution for evaluation in evaluations):
        measured = [each for each in evaluations if each.resolution == resolution and each.panel is not None]
        if measured:
            figures = [each.panel.figures for each in measured if each.panel is not None]
            tables.append(f"panel at {resolution}\n\n{format_panel([each.name for each in measured], figures)}")
    return tables


def _format_channels(evaluations: Sequence[Evaluation]) -> str | None:
    """Return a Markdown table of the images' channels, a row an autoencoder and channel; None where there are none."""
    rows = [["vae", "resolution", "channel", "psnr (dB)", "mean", "std"]]
    for evaluation in evaluations:
        figures = evaluation.image_channels
        for channel, values in enumerate(zip(*figures.values(), strict=True) if figures else ()):
            resolution = "whole" if evaluation.resolution is None else str(evaluation.resolution)
            rows.append([evaluation.name, resolution, str(channel), *(f"{value:.6g}" for value in values)])
    return markdown_table(rows) if len(rows) > 1 else None
