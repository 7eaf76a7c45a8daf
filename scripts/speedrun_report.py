"""What speedrun.py prints and draws of its results."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "perceptual": "perceptual distance"}
DIFFUSABLE = {
    "rotated": "E 90°", "half": "E 1/2", "three_quarters": "E 3/4", "noisy_psnr": "PSNR at 0.3 std",
    "spectrum": "spectrum", "kl": "KL",
}  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Return a line a run: medians over seeds of the last checkpoint's figures, and the seconds of its updates."""
    names = {"psnr": "PSNR", **DIFFUSABLE}
    lines = [" | ".join(["run", "seconds", *names.values()])]
    by_run: dict[str, list[list[dict[str, Any]]]] = {}
    for entry in results["runs"]:
        by_run.setdefault(entry["run"], []).append(entry["stages"])
    pace = results["seconds_per_update"]
    for label, seeds in by_run.items():
        seconds = sum(stage["updates"] * pace.get(stage["recipe"], math.nan) for stage in seeds[0])
        last = [stages[-1]["quality"]["updates"][str(stages[-1]["updates"])] for stages in seeds]
        values = [statistics.median(each.get(name, math.nan) for each in last) for name in names]
        lines.append(" | ".join([label, f"{seconds:.0f}", *(f"{value:.2f}" for value in values)]))
    return "\n".join(lines)


def curves(results: dict[str, Any], measure_name: str) -> dict[str, list[tuple[int, float, list[float]]]]:
    """For each run: updates, seconds (both from its first stage on) and the values of all seeds."""
    collected: dict[str, dict[int, tuple[float, list[float]]]] = {}
    for entry in results["runs"]:
        points = collected.setdefault(entry["run"], {})
        updates = seconds = 0.0
        for stage in entry["stages"]:
            pace = results["seconds_per_update"].get(stage["recipe"], float("nan"))
            for step, values in stage["quality"]["updates"].items():
                at = points.setdefault(int(updates) + int(step), (seconds + int(step) * pace, []))
                at[1].append(values[measure_name])
            updates, seconds = updates + stage["updates"], seconds + stage["updates"] * pace
    return {
        label: [(step, seconds, values) for step, (seconds, values) in sorted(points.items())]
        for label, points in collected.items()
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Medians over seeds, with the range of the seeds; above against updates, below against seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(MEASURES), figsize=(12, 6.5), layout="constrained")
    for column, (name, title) in enumerate(MEASURES.items()):
        for index, (label, points) in enumerate(curves(results, name).items()):
            steps, seconds, values = zip(*points, strict=True)
            for row, x in enumerate((steps, seconds)):
                colour = f"C{index}"
                medians = [statistics.median(each) for each in values]
                axes[row, column].plot(x, medians, color=colour, label=label, linewidth=1.5)
                axes[row, column].fill_between(
                    x, [min(each) for each in values], [max(each) for each in values], color=colour, alpha=0.2, lw=0
                )
        for row, unit in enumerate(("updates", "seconds")):
            axes[row, column].set(xlabel=unit, ylabel=title, xscale="log")
            axes[row, column].grid(alpha=0.3, which="both")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=90)
