"""A step on a tiny state whose perceptual distance has random weights, and batches for it."""

from __future__ import annotations

import copy
import dataclasses

import lpips
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ldm_vae.config.run import Config
from ldm_vae.images.training import TrainingBatch
from ldm_vae.losses.perceptual import PerceptualDistance
from ldm_vae.models.frozen.lpips import LpipsFeatures
from ldm_vae.training.perceptual import perceptual_term
from ldm_vae.training.state import TrainingState, build_meter, build_state
from ldm_vae.training.step import TrainingStep

LAM_BEFORE = 0.37  # of the step before the one under test


def make(config: Config) -> tuple[TrainingState, TrainingStep, lpips.LPIPS]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = copy.deepcopy(network)
    add_perceptual(
        state, PerceptualDistance(LpipsFeatures(trunk), heads=trunk.lins), weight=config.loss.perceptual_weight
    )
    assert state.discriminator is not None
    with torch.no_grad():  # as it starts, D's gradient is so small that lam is at its clamp, whatever it is
        for weight in state.discriminator.parameters:
            weight.mul_(8.0 if weight.ndim == 4 else 1.0)
    state.lam.fill_(LAM_BEFORE)
    state.step = 3
    step = TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)
    return state, step, network


def add_perceptual(state: TrainingState, distance: torch.nn.Module, *, weight: float) -> None:
    """Put a distance with random weights where the config's would be."""
    terms = [*state.objective.terms, perceptual_term(distance, weight=weight)]
    state.objective = dataclasses.replace(state.objective, terms=terms)
    state.meter = build_meter(state.objective, adversarial=True, device=state.lam.device)


def make_batch(size: int = 4, *, channels: int = 3, seed: int = 1) -> TrainingBatch:
    rng = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.randn(size, channels, 8, 8, generator=rng), size=64, mode="bicubic").clamp(-1, 1)
    return TrainingBatch(images=images, noise=torch.randn(size, 4, 32, 32, generator=rng), skipped=[])
