"""What a probe does, in numbers: the budgets, and the record by whose hash two tables can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ldm_vae.config.commands.probe import ProbeOptions
from ldm_vae.config.rules import require
from ldm_vae.probing.flow import BASE_DIMENSION

PROBE_VERSION = 1
"""Raised whenever a figure changes its meaning under an unchanged name."""
EMA_DECAY = 0.999
WARMUP = 0.05
"""Share of the steps over which the learning rate rises."""
BETAS = (0.9, 0.95)
MAX_NORM = 1.0
"""Largest norm of a gradient."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Size and length of a probe's trainings, and how much is compared."""

    resolution: int
    """Side of the pictures, in pixels."""
    grid: int
    """Tokens along a side, at most."""
    width: int
    depth: int
    heads: int
    batch_size: int
    """Latents a step, over all processes."""
    steps: int
    learning_rate: float
    sampler_steps: int
    num_images: int
    """Pictures to learn from, at most."""
    num_samples: int
    """Samples a training, and pictures that they are compared with, at most."""
    num_seeds: int


BUDGETS = {
    "small": Budget(
        resolution=128, grid=8, width=128, depth=4, heads=4, batch_size=32, steps=1000, learning_rate=1e-3,
        sampler_steps=25, num_images=2000, num_samples=256, num_seeds=2,
    ),
    "standard": Budget(
        resolution=256, grid=16, width=384, depth=12, heads=6, batch_size=128, steps=10_000, learning_rate=5e-4,
        sampler_steps=50, num_images=20_000, num_samples=5000, num_seeds=2,
    ),
    "full": Budget(
        resolution=256, grid=16, width=768, depth=12, heads=12, batch_size=256, steps=30_000, learning_rate=2e-4,
        sampler_steps=50, num_images=100_000, num_samples=10_000, num_seeds=3,
    ),
}  # fmt: skip


def choose_budget(options: ProbeOptions) -> Budget:
    """Return the budget that was asked for, with what was given in place of its own numbers."""
    given = {
        "steps": options.steps,
        "num_seeds": options.seeds,
        "resolution": options.resolution,
        "num_images": options.num_images,
        "num_samples": options.num_samples,
    }
    return replace(BUDGETS[options.budget], **{name: value for name, value in given.items() if value is not None})


def common_grid(sides: Mapping[str, int], *, largest: int) -> int:
    """Return how many tokens lie along a side for all autoencoders: the most, up to `largest`, that divide each side.

    Args:
        sides: Side of the latents, by the autoencoder's name.
        largest: The budget's.

    Raises:
        ValueError: There are fewer than two.
    """
    grid = max(grid for grid in range(1, largest + 1) if all(side % grid == 0 for side in sides.values()))
    shown = ", ".join(f"{name} {side}x{side}" for name, side in sides.items())
    require(
        grid > 1, f"<resolution> leaves latents ({shown}) that can't be cut into equally many tokens; take another"
    )
    return grid


def probe_protocol(
    budget: Budget, *, grid: int, normalize: str, bf16: bool, train_bf16: bool, features: Sequence[str], data: str
) -> dict[str, Any]:
    """Return what figures share that can be compared.

    Args:
        budget: With the steps that were made.
        grid: Tokens along a side.
        normalize: How latents were normalised.
        bf16: Whether autoencoders ran in bf16.
        train_bf16: Whether the diffusion model did.
        features: Names and protocols of the networks that samples were compared in.
        data: Digest of the pictures.
    """
    return {
        "version": PROBE_VERSION,
        **asdict(budget),
        "grid": grid,
        "network": "adaLN-Zero transformer with normalised queries and keys",
        "objective": "velocity of x_t = (1 - t) x + t n, mean squared error, logit-normal t",
        "time_shift": f"sqrt(elements of a latent / {BASE_DIMENSION})",
        "optimizer": f"AdamW, betas {BETAS}, no decay, warm-up {WARMUP:g} of the steps, gradients to {MAX_NORM:g}",
        "ema_decay": EMA_DECAY,
        "normalize": normalize,
        "autoencoder_precision": "bf16" if bf16 else "float32",
        "training_precision": "bf16" if train_bf16 else "float32",
        "features": list(features),
        "data": data,
    }


def with_hash(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record with its SHA-256."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def differences(first: Mapping[str, Any], second: Mapping[str, Any], *, within: str = "") -> list[str]:
    """Return the fields in which two records differ, as `steps 1000 and 2000`; their hashes don't count."""
    found = []
    for name in dict.fromkeys([*first, *second]):
        one, two = first.get(name), second.get(name)
        if name == "sha256" or one == two:
            continue
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += differences(one, two, within=f"{within}{name}.")
        else:
            found.append(f"{within}{name} {_shown(one)} and {_shown(two)}")
    return found


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
