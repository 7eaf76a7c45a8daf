"""Flow matching and the transformer against what is known of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from ldm_vae.probing.flow import draw_latents, draw_times, flow_loss, shift_times, step_generator, time_shift
from ldm_vae.probing.network import LatentTransformer


def tiny(**changes: object) -> LatentTransformer:
    torch.manual_seed(0)
    values = {"channels": 3, "side": 8, "patch": 2, "width": 16, "depth": 2, "heads": 2}
    return LatentTransformer(**values | changes)  # type: ignore[arg-type]


def test_a_point_is_reached_by_its_exact_velocity() -> None:
    """Where all data are one latent, the velocity at x_t is (x_t - x) / t, and any number of steps ends there."""
    target = torch.randn(1, 3, 4, 4)

    def velocity(latents: Tensor, times: Tensor) -> Tensor:
        return (latents - target) / times[:, None, None, None]

    for steps, shift in ((1, 1.0), (7, 3.0)):
        found = draw_latents(velocity, torch.randn(5, 3, 4, 4), steps=steps, shift=shift)
        assert torch.allclose(found, target.expand_as(found), atol=1e-4)


def test_a_gaussian_s_exact_velocity_gives_its_spread() -> None:
    """Data N(0, s²): E[n - x | x_t] = (t - (1 - t) s²) / (t² + (1 - t)² s²) · x_t."""
    s = 0.3

    def velocity(latents: Tensor, times: Tensor) -> Tensor:
        t = times[:, None, None, None]
        return (t - (1 - t) * s**2) / (t**2 + (1 - t) ** 2 * s**2) * latents

    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = draw_latents(velocity, noise, steps=200, shift=1.0)
    assert found.std().item() == pytest.approx(s, rel=0.03)


def test_loss_is_that_of_the_velocity_on_the_straight_way() -> None:
    latents, noise = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    times = torch.tensor([0.0, 0.2, 0.7, 1.0])
    seen = {}

    def velocity(at: Tensor, t: Tensor) -> Tensor:
        seen["at"], seen["t"] = at, t
        return torch.zeros_like(at)

    assert flow_loss(velocity, latents, noise, times).item() == pytest.approx((noise - latents).square().mean().item())
    times = times.view(-1, 1, 1, 1)
    torch.testing.assert_close(seen["at"], (1 - times) * latents + times * noise)
    assert torch.equal(seen["at"][0], latents[0])
    torch.testing.assert_close(seen["at"][3], noise[3])


def test_times_are_logit_normal_and_later_for_larger_latents() -> None:
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    times = draw_times(normal, shift=1.0)
    assert torch.allclose(torch.logit(times), normal, atol=1e-3)
    assert time_shift(4 * 32 * 32) == 1
    assert time_shift(16 * 32 * 32) == 2
    odds = times / (1 - times)
    shifted = shift_times(times, shift=2.0)
    assert torch.allclose(shifted / (1 - shifted), 2 * odds, rtol=1e-3)


def test_random_numbers_are_a_function_of_seed_and_step() -> None:
    def draw(step: int, seed: int) -> float:
        return torch.randn((), generator=step_generator(step, seed=seed, device=torch.device("cpu"))).item()

    assert draw(3, 0) == draw(3, 0)
    assert len({draw(step, seed) for step in range(4) for seed in range(4)}) == 16


@pytest.mark.parametrize(("patch", "classes"), [(1, None), (2, 5), (4, None)])
def test_the_network_begins_as_zero_and_every_weight_gets_a_gradient(patch: int, classes: int | None) -> None:
    network = tiny(patch=patch, num_classes=classes)
    latents, times = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.9])
    labels = None if classes is None else torch.tensor([0, 4])
    assert network(latents, times, labels).shape == latents.shape
    assert network(latents, times, labels).abs().max() == 0
    for name, weight in network.named_parameters():
        if weight.abs().max() == 0:
            nn.init.normal_(weight, std=0.1)
        assert weight.requires_grad, name
    network(latents, times, labels).square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_patches_come_back_to_their_places() -> None:
    """What one token's output is, one patch of the result is."""
    network = tiny()
    nn.init.eye_(network.tokens_out.weight)
    latents = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        moved = latents.clone()
        moved[:, :, 2:4, 4:6] += 1
        network.blocks = nn.ModuleList()  # without attention a patch depends on itself alone
        before, after = (network(each, torch.tensor([0.5])) for each in (latents, moved))
    changed = (before != after).any(dim=1)[0]
    assert changed[2:4, 4:6].any()
    changed[2:4, 4:6] = False
    assert not changed.any()


def test_it_learns_to_tell_two_latents_from_noise() -> None:
    data = torch.stack([torch.full((3, 8, 8), value) for value in (-1.0, 1.0)])
    network = tiny(width=32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        batch = data.repeat(8, 1, 1, 1)
        noise = torch.randn(batch.shape, generator=generator)
        times = draw_times(torch.randn(16, generator=generator), shift=1.0)
        loss = flow_loss(network, batch, noise, times)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = draw_latents(network.eval(), torch.randn(32, 3, 8, 8, generator=generator), steps=20, shift=1.0)
    means = found.mean(dim=(1, 2, 3))
    assert means.abs().mean().item() == pytest.approx(1, abs=0.25)
    assert found.std(dim=(1, 2, 3)).mean().item() < 0.4
    assert not math.isnan(loss.item())
