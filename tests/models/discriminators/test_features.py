"""The discriminator on a frozen network's features: heads are trained, what they look through is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_vae.losses.adversarial import gradient_penalty
from ldm_vae.models.discriminators.discriminator import detached
from ldm_vae.models.discriminators.features import FeatureDiscriminator
from ldm_vae.models.frozen.vision import load_vision
from tests.vision import save_vision


@pytest.fixture(scope="module", params=["dinov2", "efficientnet_lite0"])
def discriminator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureDiscriminator:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "dinov2":
        save_vision("dinov2", folder)
    network = load_vision(request.param, folder=str(folder), depth="quarters", choice="a", field="b")
    torch.manual_seed(0)
    return FeatureDiscriminator(network, channels=8)


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_gives_logits_of_each_depth_at_the_places_of_the_deepest(discriminator: FeatureDiscriminator) -> None:
    patch = discriminator.frozen.trunk.patch_size
    logits = discriminator.logits(discriminator.look(pictures(0)))
    assert logits.shape == (2, 4, 64 // patch, 48 // patch)
    assert logits.dtype == torch.float32


def test_images_of_a_call_do_not_mix(discriminator: FeatureDiscriminator) -> None:
    images, reconstruction = pictures(0), pictures(1)
    seen = detached(discriminator.look(reconstruction))
    judged = discriminator(images, seen)
    alone = torch.cat([discriminator.logits(discriminator.look(image[None])) for image in images])
    torch.testing.assert_close(judged.real, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(judged.fake, discriminator.logits(seen), rtol=1e-4, atol=1e-5)


def test_the_heads_alone_are_trained_and_kept(discriminator: FeatureDiscriminator) -> None:
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    assert not list(discriminator.buffers())
    images = pictures(0).requires_grad_()
    discriminator.logits(discriminator.look(images)).mean().backward()
    assert images.grad.abs().sum() > 0  # the generator's gradient, through what is frozen
    discriminator.zero_grad()
    judged = discriminator(images, detached(discriminator.look(pictures(1))))
    (judged.fake.mean() - judged.real.mean()).backward()
    assert all(parameter.grad.norm() > 0 for parameter in discriminator.parameters())
    assert all(parameter.grad is None for parameter in discriminator.frozen.parameters())


def test_the_gradient_penalty_is_that_at_the_features(discriminator: FeatureDiscriminator) -> None:
    images, seen = pictures(0), detached(discriminator.look(pictures(1)))
    judged = discriminator(images, seen, differentiable=True)
    plain = discriminator(images, seen)
    torch.testing.assert_close(judged.real, plain.real, rtol=1e-4, atol=1e-5)
    maps = [each.detach().requires_grad_() for each in discriminator.look(images)]
    grads = torch.autograd.grad(discriminator.logits(tuple(maps)).sum(), maps)
    squared = sum(grad.square().flatten(1).sum(1) for grad in grads)
    penalty = gradient_penalty(judged.real, judged.at)
    torch.testing.assert_close(penalty, squared.mean() / plain.real[0].numel(), rtol=1e-4, atol=1e-8)
    discriminator.zero_grad()
    penalty.backward()
    assert all(p.grad is not None for name, p in discriminator.named_parameters() if not name.endswith("bias"))
