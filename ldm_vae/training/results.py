"""What micro-batches leave behind beside gradients, and its average over the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm_vae.models.bottlenecks.codes import CodeStatistics


@dataclass(kw_only=True)
class MicroBatchResult:
    """What a micro-batch leaves behind, besides gradients in the networks."""

    figures: Tensor  # the averaged figures in order, float32; 0 for those that were not measured
    measured: frozenset[str]  # names of the figures that were measured
    grad_reconstruction: Tensor  # gradient of the terms on images at the last layer's weight W
    grad_generator: Tensor  # gradient of the adversarial loss g at W
    num_elements: int  # number of elements N of an image
    posterior: Tensor | None  # the posterior's moments, [4, c], in updates that measure them
    codes: CodeStatistics | None  # which codes the micro-batch took, where the bottleneck learns from them
    grad_encoder: Tensor | None  # [2, ...], gradients at V of what the decoder sent, and of the alignment


class GlobalResult(NamedTuple):
    """Averages over the global batch."""

    figures: Tensor
    """The averaged figures in order."""
    grad_reconstruction: Tensor
    """Gradient of the terms on images at W, in a row."""
    grad_generator: Tensor
    """Gradient of the adversarial loss g at W, in a row."""
    grad_encoder: Tensor | None
    """Gradients at V, [2, ...]; None where nothing is aligned."""


def average(results: Sequence[MicroBatchResult], *, accelerator: Accelerator) -> GlobalResult:
    """Average figures and gradients over micro-batches and processes, in one reduction."""
    of_encoder = [result.grad_encoder.flatten() for result in results if result.grad_encoder is not None]
    parts = [
        torch.stack([result.figures for result in results]).mean(0),
        torch.stack([result.grad_reconstruction for result in results]).mean(0).flatten(),
        torch.stack([result.grad_generator for result in results]).mean(0).flatten(),
        *([torch.stack(of_encoder).mean(0)] if of_encoder else []),
    ]
    means = accelerator.reduce(torch.cat(parts), reduction="mean").split([len(part) for part in parts])
    return GlobalResult(means[0], means[1], means[2], torch.stack(means[3].chunk(2)) if of_encoder else None)
