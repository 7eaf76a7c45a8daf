"""The control: the same pictures come out, its latents are noise to the panel, and they are learnt worse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from ldm_vae.metrics.sets import frechet_distance
from ldm_vae.metrics.spectrum import cosine_power, high_share
from ldm_vae.models.families import family_of
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.normalisation import Normalisation
from ldm_vae.probing.control import ScrambledAutoencoder, turn_blocks
from ldm_vae.probing.flow import draw_latents
from ldm_vae.probing.latents import EncodedMoments, TrainingLatents
from ldm_vae.probing.protocol import BUDGETS
from ldm_vae.probing.train import Run, train
from ldm_vae.system.launch import join_processes
from tests.pictures import picture
from tests.tiny import tiny_autoencoder


@pytest.mark.parametrize("side", [32, 12])
def test_scrambled_latents_decode_to_the_same_pictures(side: int) -> None:
    images = torch.stack([pil_to_tensor(picture(i, size=(side, side))) for i in range(4)]) / 127.5 - 1
    plain = InferenceAutoencoder(family_of(tiny_autoencoder()), bf16=False, device=torch.device("cpu"))
    scrambled = ScrambledAutoencoder(family_of(tiny_autoencoder()), bf16=False, device=torch.device("cpu"))
    mean, std = plain.encode(images)
    mixed, mixed_std = scrambled.encode(images)
    assert mixed.shape == mean.shape
    assert torch.allclose(mixed.square().sum(), mean.square().sum(), rtol=1e-4)  # turned, not scaled
    assert torch.allclose(mixed_std.square().sum(), std.square().sum(), rtol=1e-4)
    assert (mixed - mean).square().mean() > 0.5 * mean.square().mean()
    assert torch.allclose(scrambled.decode(mixed), plain.decode(mean), atol=1e-4)
    shares = [high_share(cosine_power(latents)).mean().item() for latents in (mean, mixed)]
    assert shares[1] > shares[0] + 0.1


def distance_of_samples(seed: int, *, scrambled: bool, steps: int = 70, width: int = 48) -> float:
    """Train a tiny probe on smooth latents, as they are or scrambled; return how far its samples, turned back, are.

    The distance is Frechet's, of the latents themselves.
    """
    latents = torch.stack([pil_to_tensor(picture(i, size=(8, 8))) for i in range(256)]) / 127.5 - 1  # [n, 3, 8, 8]
    turns = torch.linalg.qr(torch.randn(4, 48, 48, generator=torch.Generator().manual_seed(0))).Q
    learnt = turn_blocks(latents, turns) if scrambled else latents
    moments = EncodedMoments(mean=learnt.numpy(), std=np.zeros_like(learnt.numpy()), rows=np.arange(len(learnt)))
    shift, scale = learnt.mean(dim=(0, 2, 3), keepdim=True), 1 / learnt.std(dim=(0, 2, 3), keepdim=True)
    normalisation = Normalisation(shift=shift, scale=scale)
    budget = replace(
        BUDGETS["small"], width=width, depth=2, heads=2, steps=steps, learning_rate=3e-3, num_samples=256,
        sampler_steps=20,
    )  # fmt: skip
    run = Run(
        latents=TrainingLatents(moments=moments, normalisation=normalisation), budget=budget, grid=4, seed=seed,
        bf16=False, device=torch.device("cpu"),
    )  # fmt: skip
    network = train(run, checkpoint=Path("nowhere"), processes=join_processes(), title="test")
    noise = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    found = normalisation.restore(draw_latents(network, noise, steps=20, shift=run.shift))
    found = turn_blocks(found, turns.mT) if scrambled else found
    return frechet_distance(latents.flatten(1).double(), found.flatten(1).double())


def test_the_probe_ranks_scrambled_latents_last() -> None:
    plain, scrambled = ([distance_of_samples(seed, scrambled=mixed) for seed in (0, 1)] for mixed in (False, True))
    assert max(plain) < min(scrambled)
