"""What is drawn for interventions beside crop, flip and posterior noise: for each image, and for each update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ldm_vae.config.loss import LossConfig
from ldm_vae.system.randomness import sample_rng


@dataclass(frozen=True, kw_only=True)
class DrawRules:
    """What an image's draws are as a function of (seed, k), and an update's as one of (seed, number of the update).

    What decides on shapes is drawn for a whole update, so that every process and every micro-batch has the same.
    """

    seed: int
    batch_size: int
    """Images an update, over all processes: the k-th image belongs to update k // batch_size."""
    eq_probability: float = 0.0
    """Part of the updates with `eq_scale`."""
    pair_every: int = 0
    """`pair_scale` is there in every so many-th update; 0: never."""
    scales: Sequence[float] = ()
    """What `eq_scale` and `pair_scale` are drawn from."""
    rotations: Sequence[int] = ()
    """What `rotation` is drawn from, in degrees; empty: it isn't drawn."""
    flips: bool = False
    """Whether half of the images are mirrored."""
    latent_noise: Literal["off", "interpolative", "additive", "relative"] = "off"
    """Whether `noise_strength` and `latent_noise` are drawn."""
    low_pass: Sequence[int] = ()
    """What `low_pass` is drawn from; empty: it isn't drawn."""

    @classmethod
    def of(cls, loss: LossConfig, *, seed: int, batch_size: int, decoder_only: bool) -> DrawRules:
        """Return what a run's interventions need."""
        moves = loss.eq_probability > 0 or loss.compares_pairs
        return cls(
            seed=seed,
            batch_size=batch_size,
            eq_probability=loss.eq_probability,
            pair_every=loss.equivariance_every if loss.compares_pairs else 0,
            scales=loss.equivariance_scales if moves else (),
            rotations=loss.equivariance_rotations if moves else (),
            flips=moves and loss.equivariance_flips,
            latent_noise="off" if decoder_only else loss.latent_noise,
            low_pass=loss.low_pass,
        )

    def of_image(self, k: int, *, latent_shape: Sequence[int]) -> dict[str, Tensor]:
        """Return the k-th image's draws by name.

        Returns:
            `rotation`: [], quarter turns counter-clockwise. `mirror`: [], whether it is mirrored before it is turned.
            `noise_strength`: [], uniform in [0, 1). `latent_noise`: of `latent_shape`, standard normal. `low_pass`:
            []. Each is there where a rule asks for it.
        """
        draws: dict[str, Tensor] = {}
        if self.rotations:
            degrees = self.rotations[int(self._rng(k, "rotation").integers(len(self.rotations)))]
            draws["rotation"] = torch.tensor(degrees // 90)
            draws["mirror"] = torch.tensor(self.flips and bool(self._rng(k, "mirror").random() < 0.5))
        if self.latent_noise != "off":
            draws["noise_strength"] = torch.tensor(self._rng(k, "noise_strength").random(), dtype=torch.float32)
            noise = self._rng(k, "latent_noise").standard_normal(tuple(latent_shape), dtype=np.float32)
            draws["latent_noise"] = torch.from_numpy(noise)
        if self.low_pass:
            draws["low_pass"] = torch.tensor(self.low_pass[int(self._rng(k, "low_pass").integers(len(self.low_pass)))])
        return draws

    def of_step(self, step: int) -> dict[str, float]:
        """Return an update's draws by name: `eq_scale` and `pair_scale`, numbers of `scales`, where they are due."""
        draws: dict[str, float] = {}
        if self.eq_probability > 0:
            rng = self._rng(step, "eq_scale")
            if rng.random() < self.eq_probability:
                draws["eq_scale"] = self.scales[int(rng.integers(len(self.scales)))]
        if self.pair_every > 0 and step % self.pair_every == 0:
            draws["pair_scale"] = self.scales[int(self._rng(step, "pair_scale").integers(len(self.scales)))]
        return draws

    def rehearsed(self) -> list[dict[str, float]]:
        """Return the draws of updates that between them have every shape there is, the largest first."""
        scales = sorted(set(self.scales), reverse=True)
        draws: list[dict[str, float]] = [{"pair_scale": scale} for scale in scales] if self.pair_every > 0 else [{}]
        if self.eq_probability > 0:
            draws += [draws[0] | {"eq_scale": scale} for scale in scales]
        return draws

    def _rng(self, number: int, stream: str) -> np.random.Generator:
        return sample_rng(number, seed=self.seed, stream=stream)
