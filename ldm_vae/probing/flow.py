"""Flow matching on latents: the times, the loss and the sampler (Lipman et al. 2023; Esser et al. 2024).

x_t = (1 - t) x + t n on the straight way from a latent x (t = 0) to noise n (t = 1), whose velocity n - x is learnt.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldm_vae.system.float64 import float64_tensor

BASE_DIMENSION = 4096
"""Elements of a latent whose times aren't shifted, as of 4 x 32 x 32 (RAE, arXiv 2510.11690, section 4.3)."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""From latents [B, c, h, w] and times [B] to velocities [B, c, h, w]."""


def time_shift(dimension: int) -> float:
    """Return the factor sqrt(dimension / `BASE_DIMENSION`) by which the odds of times are shifted.

    The more elements share a picture's information, the more noise it takes to hide it (Esser et al. 2024,
    section 5.3.2).
    """
    return math.sqrt(dimension / BASE_DIMENSION)


def shift_times(times: Tensor, *, shift: float) -> Tensor:
    """Return shift·t / (1 + (shift - 1)·t) of times in [0, 1]."""
    return shift * times / (1 + (shift - 1) * times)


def draw_times(normal: Tensor, *, shift: float) -> Tensor:
    """Return logit-normal times of standard normal numbers [B], shifted (Esser et al. 2024, equation 19)."""
    return shift_times(torch.sigmoid(normal), shift=shift)


def flow_loss(velocity: Velocity, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Return the mean squared error of the velocity, a scalar.

    It is no measure of an autoencoder: dimension and variance of the latents enter it.

    Args:
        velocity: The network.
        latents: Normalised latents [B, c, h, w].
        noise: Standard normal, [B, c, h, w].
        times: [B] in [0, 1].
    """
    t = times[:, None, None, None]
    return (velocity(torch.lerp(latents, noise, t), times).float() - (noise - latents)).square().mean()


@torch.no_grad()
def draw_latents(velocity: Velocity, noise: Tensor, *, steps: int, shift: float) -> Tensor:
    """Return normalised latents [B, c, h, w] that noise flows back to, by Euler steps of shifted times."""
    times = shift_times(float64_tensor([1 - i / steps for i in range(steps + 1)]), shift=shift).tolist()
    latents = noise
    for now, after in itertools.pairwise(times):
        at = torch.full((len(latents),), now, dtype=torch.float32, device=latents.device)
        latents = latents + (after - now) * velocity(latents, at).float()
    return latents


def step_generator(step: int, *, seed: int, device: torch.device) -> torch.Generator:
    """Return the random numbers of a training step, a function of (seed, step)."""
    digest = hashlib.blake2b(f"probe/{seed}/{step}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
