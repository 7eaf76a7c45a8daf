"""The autoencoder at its fastest gives what diffusers gives."""

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from ldm_vae.models.families import family_of
from ldm_vae.models.inference import InferenceAutoencoder
from tests.models.recording import ReplayingRecorder
from tests.tiny import tiny_autoencoder


def tiny(**fields: Any) -> AutoencoderKL:
    return tiny_autoencoder(widths=(16, 32), norm_num_groups=8, **fields)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("use_quant_conv", [True, False])
def test_float32_is_bit_equal_to_diffusers(images: torch.Tensor, use_quant_conv: bool) -> None:
    plain = tiny(use_quant_conv=use_quant_conv, use_post_quant_conv=use_quant_conv).to(
        memory_format=torch.channels_last
    )
    fast = InferenceAutoencoder(family_of(copy.deepcopy(plain)), bf16=False)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        posterior = plain.encode(images).latent_dist
        mean, std = fast.encode(images)
        assert torch.equal(mean, posterior.mean)
        assert torch.equal(std, posterior.std)
        latents = mean.contiguous(memory_format=torch.channels_last)
        assert torch.equal(fast.decode(mean), plain.decode(latents).sample)


def test_bf16_is_as_near_as_autocast(images: torch.Tensor) -> None:
    plain = tiny()
    fast = InferenceAutoencoder(family_of(copy.deepcopy(plain)), bf16=True)
    with torch.no_grad():
        exact = plain.encode(images).latent_dist.mean
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = plain.encode(images).latent_dist.mean.float()
        mean, std = fast.encode(images)
        decoded, exact_decoded = fast.decode(exact), plain.decode(exact).sample
    assert mean.dtype == std.dtype == decoded.dtype == torch.float32
    assert not torch.equal(mean, mean.bfloat16().float())  # the last layers don't round
    error = (mean - exact).norm() / exact.norm()
    assert 0 < error < 1.2 * (autocast - exact).norm() / exact.norm()
    assert (decoded - exact_decoded).norm() / exact_decoded.norm() < 0.03


def test_pixels(images: torch.Tensor) -> None:
    fast = InferenceAutoencoder(family_of(tiny()), bf16=False)
    pixels = torch.arange(2 * 16 * 24 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 16, 24, 3)
    expected = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(fast.to_images(pixels), expected)
    assert torch.equal(fast.encode_pixels(pixels)[0], fast.encode(expected)[0])


def test_recorded_calls_are_the_calls(images: torch.Tensor) -> None:
    """What a GPU takes, with a recorder that needs none."""
    plain = InferenceAutoencoder(family_of(tiny()), bf16=False)
    fast = InferenceAutoencoder(family_of(tiny()), bf16=False)
    recorder = ReplayingRecorder()
    fast._launch_less(recorder)
    for shift in (0.0, 0.1, 0.2, 0.3):
        mean, std = plain.encode(images * 0.5 + shift)
        found, spread = fast.encode(images * 0.5 + shift)
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(spread, std, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast.decode(mean), plain.decode(mean), rtol=1e-4, atol=1e-5)
    assert recorder.replayed == 2 * (1 + 2)  # of each half: the comparison, and the last two calls


@pytest.mark.parametrize("word", ["on", "off"])
def test_networks_are_compiled_where_that_is_asked_for(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setenv("LDM_VAE_COMPILE", word)
    monkeypatch.setattr(nn.Module, "compile", lambda network: compiled.append(network))  # which takes long
    autoencoder = tiny()
    InferenceAutoencoder(family_of(autoencoder), bf16=False)._launch_less(ReplayingRecorder())
    assert compiled == ([autoencoder.encoder, autoencoder.decoder] if word == "on" else [])
