"""The faster blocks compute what diffusers' and torch's do."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ldm_vae.models import blocks
from ldm_vae.models.blocks import speed_up_blocks
from tests.tiny import tiny_autoencoder


def tiny() -> AutoencoderKL:
    return tiny_autoencoder().train().to(memory_format=torch.channels_last)


def gradients(autoencoder: AutoencoderKL, images: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs every pixel by its place, and the reconstruction."""
    reconstruction = autoencoder(images).sample
    ramp = torch.linspace(-1, 1, reconstruction[0].numel()).view_as(reconstruction[0])
    autoencoder.zero_grad()
    (reconstruction * ramp).sum().backward()
    found = {name: parameter.grad for name, parameter in autoencoder.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None} | {
        "y": reconstruction.detach()
    }


@pytest.mark.parametrize("resolution", [16, 32])  # on either side of where the upsampling is another operation
def test_gradients_are_those_of_diffusers(resolution: int) -> None:
    images = torch.randn(4, 3, resolution, resolution).to(memory_format=torch.channels_last)
    assert (4 * (resolution // 2) ** 2 >= blocks.MIN_POSITIONS[torch.float32]) == (resolution == 32)
    plain = tiny()
    fast = copy.deepcopy(plain)
    speed_up_blocks(fast)
    expected, found = gradients(plain, images), gradients(fast, images)
    assert expected.keys() == found.keys()
    scale = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6 * scale, msg=name)


def test_upsampling_without_gradients_is_bit_equal_to_diffusers() -> None:
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    plain = tiny().eval()
    fast = copy.deepcopy(plain)
    speed_up_blocks(fast)
    with torch.no_grad():
        assert torch.equal(fast(images).sample, plain(images).sample)


def test_narrow_group_norm_is_as_near_to_the_exact_gradient_as_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, 32)
    nn.init.normal_(norm.weight)
    hidden = torch.randn(3, 32, 12, 10).add(2).to(memory_format=torch.channels_last)
    upstream = torch.randn(3, 32, 12, 10).to(memory_format=torch.channels_last)

    def backward(dtype: torch.dtype, parameter_dtype: torch.dtype) -> list[Tensor]:
        module = copy.deepcopy(norm).to(parameter_dtype)
        speed_up_blocks(module)
        leaf = hidden.to(dtype).requires_grad_()
        module(leaf).backward(upstream.to(dtype))
        found = [leaf.grad, module.weight.grad, module.bias.grad]
        return [gradient for gradient in found if gradient is not None]

    def refuses_zero(*arguments: object, eps: float = 1e-5, **others: object) -> Tensor:
        raise ValueError(f"batch_norm eps must be positive, but got {eps}")  # as torch 2.11 says of 0

    monkeypatch.setattr(blocks.F, "batch_norm", refuses_zero)
    exact = backward(torch.float64, torch.float64)
    ours = backward(torch.bfloat16, torch.float32)
    monkeypatch.setattr(blocks, "NARROW_GROUP", 0)
    torchs = backward(torch.bfloat16, torch.float32)
    assert len(ours) == 3
    for a, b, c in zip(ours, torchs, exact, strict=True):
        assert a.dtype == b.dtype
        error, torchs_error = ((grad.double() - c).norm() / c.norm() for grad in (a, b))
        assert error < 1.4 * torchs_error + 1e-6
    assert not torch.equal(ours[0], torchs[0])  # they were two ways


def test_copies_of_a_fast_network_are_their_own() -> None:
    first = tiny()
    speed_up_blocks(first)
    second = copy.deepcopy(first)
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        before = first(images).sample
        for parameter in second.parameters():
            parameter.zero_()
        assert torch.equal(first(images).sample, before)
        assert not second(images).sample.any()


def test_convolutions_add_to_the_shortcut_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in which every CPU can: the sums are those of diffusers, and no input is overwritten unasked."""
    monkeypatch.setattr(blocks, "ADDED_IN_PLACE", {torch.float32})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    added: list[Tensor] = []
    add_convolution = blocks._add_convolution

    def counted(conv: nn.Conv2d, hidden: Tensor, target: Tensor) -> Tensor:
        added.append(target)
        return add_convolution(conv, hidden, target)

    monkeypatch.setattr(blocks, "_add_convolution", counted)
    plain = tiny().eval()
    fast, careful = copy.deepcopy(plain), copy.deepcopy(plain)
    speed_up_blocks(fast, overwrites=True)
    speed_up_blocks(careful)
    images = torch.randn(2, 3, 32, 24).to(memory_format=torch.channels_last)
    untouched = images.clone()
    with torch.no_grad():
        torch.testing.assert_close(fast(images).sample, plain(images).sample, rtol=1e-4, atol=1e-5)
    assert torch.equal(images, untouched)
    assert len(added) == sum(isinstance(module, ResnetBlock2D) for module in plain.modules())
    added.clear()
    fast(images).sample.sum().backward()  # gradients need what would be overwritten
    with torch.no_grad():
        careful(images)
    assert not added
