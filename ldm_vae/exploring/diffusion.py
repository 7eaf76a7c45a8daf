"""Latents drawn from a small diffusion model: the probe's network, trained on known latents as the probe trains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldm_vae.config.rules import require
from ldm_vae.exploring.codec import Codec
from ldm_vae.exploring.gaussian import normal
from ldm_vae.exploring.known import KnownLatents
from ldm_vae.models.precision import autocast
from ldm_vae.probing.flow import draw_latents
from ldm_vae.probing.latents import normalised
from ldm_vae.probing.protocol import BUDGETS, common_grid
from ldm_vae.probing.train import Run, train
from ldm_vae.system.launch import join_processes

_BUDGET = "small"
_CHECKPOINT = "diffusion.safetensors"


class DiffusionDraw:
    """Trains a diffusion model on latents, normalised a channel, and draws from it.

    Args:
        known: What to learn from: samples of these posteriors, drawn anew at each step.
        codec: The autoencoder, on whose device the model is trained.
        steps: Of the training; None: those of the probe's small budget.
        seed: Of first weights, order and noise.
        work: Folder for a checkpoint.

    Raises:
        ValueError: Latents aren't square, or can't be cut into tokens.
    """

    def __init__(self, known: KnownLatents, codec: Codec, *, steps: int | None, seed: int, work: Path) -> None:
        _, height, width = known.shape
        require(
            height == width,
            f"<method> diffusion is for square latents, and these are {width} wide and {height} high; take gaussian",
        )
        budget = BUDGETS[_BUDGET]
        budget = replace(budget, resolution=height * codec.family.spatial_factor, steps=steps or budget.steps)
        self._device = codec.device
        self._run = Run(
            latents=normalised(known.moments, codec.family, by="channel"),
            budget=budget,
            grid=common_grid({"of": height}, largest=budget.grid),
            seed=seed,
            bf16=self._device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
            device=self._device,
        )
        self._network = train(
            self._run, checkpoint=work / _CHECKPOINT, processes=join_processes(), title="diffusion model"
        )

    @property
    def steps(self) -> int:
        """Steps that it was trained for."""
        return self._run.budget.steps

    @torch.no_grad()
    def __call__(self, numbers: Sequence[int], *, seed: int) -> Tensor:
        """Draw, as `gaussian.Draw` says."""
        run = self._run
        noise = normal(numbers, run.latents.moments.shape, seed=seed).to(self._device)
        with autocast(self._device, enabled=run.bf16):
            latents = draw_latents(self._network, noise, steps=run.budget.sampler_steps, shift=run.shift)
        return run.latents.normalisation.to(self._device).restore(latents).cpu()
