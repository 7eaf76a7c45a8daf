"""Samples of a trained probe, decoded, and how far they are from the pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm_vae.evaluation.features import SetFeatures
from ldm_vae.metrics.sets import frechet_distance, kernel_distance
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.precision import autocast
from ldm_vae.panel.sums import gather
from ldm_vae.probing.flow import draw_latents
from ldm_vae.probing.network import LatentTransformer
from ldm_vae.probing.train import Run
from ldm_vae.system.float64 import in_float64
from ldm_vae.system.launch import join_processes
from ldm_vae.system.pixels import to_pixels
from ldm_vae.system.progress import progress
from ldm_vae.system.randomness import sample_rng


@torch.no_grad()
def draw_samples(
    network: LatentTransformer,
    autoencoder: InferenceAutoencoder,
    run: Run,
    *,
    features: Sequence[SetFeatures],
    batch_size: int,
    keep: int,
    title: str,
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the budget's samples and decode them, each process every P-th batch.

    Sample j comes from noise that is a function of (seed, j).

    Returns:
        Features [n, d] of all samples by their network's name; and the first `keep` pictures, uint8 [k, C, H, W].
    """
    processes = join_processes()
    count, shape = run.budget.num_samples, run.latents.moments.shape
    normalisation = run.latents.normalisation.to(run.device)
    starts = range(processes.process_index * batch_size, count, processes.num_processes * batch_size)
    found: dict[int, dict[str, Tensor]] = {}
    bar = progress(total=len(starts), what=title, unit="batch", show=processes.is_main_process, leave=False)
    for start in starts:
        numbers = range(start, min(start + batch_size, count))
        rngs = [sample_rng(j, seed=run.seed, stream="probe/sample") for j in numbers]
        noise = torch.from_numpy(np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs]))
        with autocast(run.device, enabled=run.bf16):
            latents = draw_latents(network, noise.to(run.device), steps=run.budget.sampler_steps, shift=run.shift)
        images = autoencoder.decode(normalisation.restore(latents))
        columns = {each.name: each(images).cpu() for each in features}
        for row, j in enumerate(numbers):
            found[j] = {name: column[row].clone() for name, column in columns.items()}
            if j < keep:
                found[j]["picture"] = to_pixels(images[row].nan_to_num()).byte().cpu()
        bar.update()
    bar.close()
    for part in gather(found):
        found |= part
    rows = {each.name: torch.stack([found[j][each.name] for j in range(count)]) for each in features}
    return rows, torch.stack([found[j]["picture"] for j in range(min(keep, count))])


def score_names(features: Sequence[SetFeatures]) -> list[str]:
    """Return the names of the distances: Frechet's first, in the first network."""
    return [f"{kind}_{each.name}" for kind in ("fd", "kd") for each in features]


def distances(real: Tensor, found: Tensor, *, name: str) -> dict[str, float]:
    """Return Frechet and kernel distance of two sets of features [n, d] by the names of `score_names`."""
    real, found = in_float64(real), in_float64(found)
    return {f"fd_{name}": frechet_distance(real, found), f"kd_{name}": kernel_distance(real, found).value}
