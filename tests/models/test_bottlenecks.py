"""Every bottleneck is held to the same promises; a new one is a line in `BOTTLENECKS`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ldm_vae.models.bottlenecks.bottleneck import Bottleneck
from ldm_vae.models.bottlenecks.deterministic import Deterministic
from ldm_vae.models.bottlenecks.gaussian import Gaussian
from ldm_vae.models.bottlenecks.quantised import FiniteScalar, VectorQuantised

BOTTLENECKS: dict[str, Callable[[int], Bottleneck]] = {  # of so many latent channels
    "gaussian": lambda channels: Gaussian(),
    "deterministic": lambda channels: Deterministic(),
    "vq": lambda channels: VectorQuantised(torch.nn.Embedding(32, channels)),
    "fsq": lambda channels: FiniteScalar(torch.nn.Embedding(5**channels, channels), levels=[5] * channels),
}
every_bottleneck = pytest.mark.parametrize("make", BOTTLENECKS.values(), ids=BOTTLENECKS.keys())


@every_bottleneck
def test_what_is_stored_gives_the_latent_back(make: Callable[[int], Bottleneck]) -> None:
    bottleneck = make(4)
    hidden = torch.randn(2, bottleneck.hidden_channels(4), 3, 5, requires_grad=True)
    latent = bottleneck(hidden)
    assert latent.z.shape == latent.mean.shape == (2, 4, 3, 5)
    assert torch.equal(bottleneck.from_stored(latent.stored), latent.z)
    assert torch.equal(latent.z, latent.mean)
    noise = torch.randn(2, 4, 3, 5)
    sampled = bottleneck(hidden, noise)
    assert torch.equal(sampled.mean, latent.mean)
    assert torch.equal(sampled.z, latent.z) == (sampled.posterior_logvar is None)
    if sampled.posterior_logvar is not None:
        torch.testing.assert_close(sampled.z, sampled.mean + torch.exp(0.5 * sampled.posterior_logvar) * noise)
    (gradient,) = torch.autograd.grad(sampled.z.sum(), hidden)
    assert gradient.any(dim=(0, 2, 3)).all()


@every_bottleneck
def test_latents_are_float32_and_finite_whatever_comes(make: Callable[[int], Bottleneck]) -> None:
    bottleneck = make(2)
    hidden = torch.full((1, bottleneck.hidden_channels(2), 2, 2), 1e4, dtype=torch.bfloat16)
    for sign in (1, -1):
        latent = bottleneck(sign * hidden, torch.ones(1, 2, 2, 2))
        for value in (latent.z, latent.mean, *latent.stored.values(), *latent.losses.values()):
            assert value.isfinite().all()
        assert latent.z.dtype == torch.float32
