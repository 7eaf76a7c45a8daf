"""What a run says while it trains: metrics.jsonl, skipped.jsonl, the tracker, the progress."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.config.stages import own_settings
from ldm_vae.images.guard import SkippedImage
from ldm_vae.losses.rate import PosteriorSummary
from ldm_vae.system.files import naming, write_whole
from ldm_vae.system.progress import progress
from ldm_vae.training.meter import MeterReading
from ldm_vae.training.run_folder import RunFolder


class Tracking:
    """Figures and lines for people and machines.

    All come from the main process, but for the list of skipped images, which each process writes for itself.

    Args:
        run: The folder that the files are in.
        config: The run's settings.
        accelerator: The processes, and the tracker.
        step: Updates that were made before.

    Raises:
        FieldError: This process doesn't see the folder, which the main process made.
    """

    def __init__(self, run: RunFolder, config: Config, *, accelerator: Accelerator, step: int):
        require(
            run.path.is_dir(),
            f"<output_dir>: {run.path}, made by the main process, is not there for process "
            f"{accelerator.process_index}; it must be on storage that all nodes share",
        )
        self.run = run
        self.accelerator = accelerator
        self.is_main = accelerator.is_main_process
        self.batch_size = config.train.batch_size
        self.bar = progress(
            sum(stage.train.max_train_steps for stage in config.row),
            what="train",
            unit="step",
            initial=step,
            show=self.is_main,
            seconds_between_lines=math.inf,  # in a log file: a line every log_steps, from `log`
        )
        self._since = (time.perf_counter(), step)
        self._seen = {(line["index"], line["name"]) for line in _lines(run.skipped)}
        self.num_skipped_images = 0
        if config.report_to != "none":
            accelerator.init_trackers(
                "ldm-vae", config=settings_of(config), init_kwargs={"tensorboard": {"purge_step": step + 1}}
            )

    def opens(self, config: Config, lines: Sequence[str]) -> None:
        """Print what is to be said of a stage that begins, and how its batches are cut."""
        processes = self.accelerator.num_processes
        size, number = config.train.accumulation(num_processes=processes)
        cut = f"{config.train.batch_size} = {processes} (processes) x {number} (micro-batches) x {size}"
        for line in (*lines, f"Images a step: {cut}"):
            self.say(line)

    def log(
        self,
        reading: MeterReading,
        *,
        learning_rates: dict[str, float],
        posterior: PosteriorSummary | None = None,
        step: int,
    ) -> None:
        """Write one line of training figures, and show the main ones."""
        now = time.perf_counter()
        seconds, steps = now - self._since[0], step - self._since[1]
        self._since = (now, step)
        figures: dict[str, Any] = {
            **reading.means,
            **({} if posterior is None else vars(posterior)),
            **learning_rates,
            **{f"nonfinite/{name}": float(times) for name, times in reading.nonfinite.items()},
            "skipped_steps": float(reading.num_skipped),
            "images_per_second": self.batch_size * steps / seconds,
        }
        self._write(figures, step=step)
        self.bar.set_postfix_str(_readable(figures), refresh=False)
        self.bar.refresh()

    def validated(self, figures: dict[str, Any], *, step: int) -> None:
        """Write one line of validation figures."""
        self._write(figures, step=step)
        shown = ", ".join(f"{name.split('/')[1]} {value:.4g}" for name, value in figures.items() if _is_number(value))
        remark = "; it can't be the best, since not all figures are finite" if "not_finite" in _finite(figures) else ""
        self.say(f"step {step}: validation {shown}{remark}")

    def measured(self, figures: dict[str, Any], *, step: int) -> None:
        """Write one line of the panel's figures."""
        self._write(figures, step=step)
        self.say(f"step {step}: a panel of {len(figures)} figures is in {self.run.metrics}")

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self.is_main:
            self.bar.write(line, file=sys.stdout)

    def skipped(self, images: list[SkippedImage]) -> None:
        """Add images that could not be read to skipped.jsonl, each once for a process, and print a line for each."""
        new = [image for image in images if (image.index, image.name) not in self._seen]
        if not new:
            return
        self._seen.update((image.index, image.name) for image in new)
        self.num_skipped_images += len(new)
        lines = "".join(json.dumps(asdict(image), ensure_ascii=False) + "\n" for image in new)
        _append(self.run.skipped, lines)
        for image in new:
            self.say(f"skipped {image.name}: {image.reason}")

    def sync(self) -> None:
        """Flush the figures to the disk, so that they survive a power failure if the next checkpoint does."""
        with naming(self.run.metrics), self.run.metrics.open("ab") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """End the trackers and the progress bar."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _write(self, figures: dict[str, Any], *, step: int) -> None:
        if self.is_main:
            _append(self.run.metrics, json.dumps({"step": step, **_finite(figures)}, allow_nan=False) + "\n")
        self.accelerator.log({name: value for name, value in figures.items() if _is_number(value)}, step=step)


def _append(path: Path, lines: str) -> None:
    """Add lines to a file."""
    with naming(path), path.open("a") as file:
        file.write(lines)


def rewind(run: RunFolder, *, step: int) -> None:
    """Drop the figures after `step`, which a resumed run writes again, and an unfinished line at either file's end."""
    for path, keep in ((run.metrics, lambda line: line["step"] <= step), (run.skipped, lambda line: True)):
        if path.is_file():
            kept = [json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(path) if keep(line)]
            write_whole(path, "".join(kept).encode())


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return what the lines of a file hold, up to the first line that isn't whole."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """Return figures with null for NaN and infinity, which JSON doesn't have; `not_finite` tells what they were."""
    replaced: dict[str, str] = {}

    def value_of(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [value_of(element, f"{name}[{i}]") for i, element in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            replaced[name] = str(value)
            return None
        return value

    values = {name: value_of(value, name) for name, value in figures.items()}
    return {**values, "not_finite": replaced} if replaced else values


def _readable(figures: dict[str, float]) -> str:
    shown = {"rec": "rec", "perceptual": "perceptual", "g": "G", "d": "D", "lam": "lam"}
    words = [f"{label} {figures[name]:.3g}" for name, label in shown.items() if figures.get(name)]
    return ", ".join([*words, f"{figures['images_per_second']:.3g} images/s"])


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def settings_of(config: Config) -> dict[str, Any]:
    """Return a run's settings under dotted names; of each stage those that it has of its own."""
    values = asdict(config)
    del values["stages"]
    for number, stage in enumerate(config.stages, 1):
        values[f"stage {number}"] = own_settings(stage, run=config)
    return flatten(values)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names, as types that every tracker takes."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
