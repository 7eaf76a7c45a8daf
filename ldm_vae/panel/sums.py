"""What the panel is measured on, batch by batch, and the sums that its figures come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn

from ldm_vae.images.evaluation import EvaluationImages, evaluation_batches
from ldm_vae.images.guard import SkippedImage
from ldm_vae.panel.measures import SIGMAS
from ldm_vae.system.float64 import in_float64
from ldm_vae.system.launch import join_processes
from ldm_vae.system.pixels import to_pixels
from ldm_vae.system.progress import progress

PANEL_VERSION = 1
"""Raised whenever a figure changes its meaning under an unchanged name."""
NOISE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class PanelImages:
    """The images that panels are measured on, and how."""

    dataset: EvaluationImages
    indices: Sequence[int]
    batch_size: int
    """Part of the protocol: neighbours in a batch are interpolated."""
    num_workers: int
    perceptual: nn.Module | None
    label: Callable[[int], int | None] | None = None
    """An image's class, by its index."""
    strict: bool = False

    def protocol(self, *, bf16: bool, perceptual: str | None) -> dict[str, Any]:
        """Return what figures share that can be compared."""
        return {
            "version": PANEL_VERSION,
            "resolution": self.dataset.resolution,
            "num_images": len(self.indices),
            "batch_size": self.batch_size,
            "precision": "bf16" if bf16 else "float32",
            "perceptual": perceptual,
            "sigmas": list(SIGMAS),
            "seed": NOISE_SEED,
            **({"target_channels": [*targets]} if (targets := self.dataset.target_channels) else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures that are measured together."""

    number: int
    indices: list[int]
    images: Tensor  # [B, C, H, W] in [-1, 1], on the CPU


@dataclass(kw_only=True)
class Tally:
    """Sums by batch and name, and rows by image, of one process; `merge` gives those of all."""

    sums: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    points: dict[int, Tensor] = field(default_factory=dict)
    features: dict[int, Tensor] = field(default_factory=dict)

    def add(self, batch: Batch, name: str, values: Tensor) -> None:
        """Add float64 values of any shape under a name."""
        sums = self.sums.setdefault(batch.number, {})
        values = in_float64(values).cpu()
        sums[name] = sums[name] + values if name in sums else values

    def merge(self) -> dict[str, Tensor]:
        """Take in what all processes have; return the totals, added up in the batches' order."""
        for part in gather(self):
            self.sums |= part.sums
            self.points |= part.points
            self.features |= part.features
        totals: dict[str, Tensor] = {}
        for _, sums in sorted(self.sums.items()):
            for name, values in sums.items():
                totals[name] = totals[name] + values if name in totals else values
        return totals


def panel_batches(images: PanelImages, skipped: list[SkippedImage], *, title: str) -> Iterator[Batch]:
    """Go through this process's batches: every P-th, so that a batch is the same whichever process has it."""
    processes, size = join_processes(), images.batch_size
    starts = range(processes.process_index * size, len(images.indices), processes.num_processes * size)
    mine = [index for start in starts for index in images.indices[start : start + size]]
    batches = evaluation_batches(
        images.dataset,
        indices=mine,
        batch_size=size,
        num_workers=images.num_workers,
        pin_memory=processes.device.type == "cuda",
    )
    bar = progress(total=len(mine), what=title, unit="image", show=processes.is_main_process, leave=False)
    for k, batch in enumerate(batches):
        skipped += batch.skipped
        if images.strict and batch.skipped:
            raise ValueError(f"{batch.skipped[0].name} can't be read as an image: {batch.skipped[0].reason}")
        if batch.images is not None:
            number = processes.process_index + k * processes.num_processes
            yield Batch(number=number, indices=batch.indices, images=batch.images)
        bar.update(len(batch.indices) + len(batch.skipped))
    bar.close()


def pixel_digests(batch: Batch) -> dict[int, bytes]:
    """Return a digest of each picture's 8-bit pixels, by the picture's index."""
    pixels = to_pixels(batch.images).byte()
    return {
        index: hashlib.sha256(row.contiguous().numpy().tobytes()).digest()
        for index, row in zip(batch.indices, pixels, strict=True)
    }


def gather(part: Any) -> list[Any]:
    """Return what each process has, in the processes' order."""
    return gather_object([part])
