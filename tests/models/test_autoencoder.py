"""diffusers' model: built as published, loaded from where users keep it, widened without forgetting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from torch import Tensor

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.autoencoder import (
    TrainableAutoencoder,
    build_autoencoder,
    checkpoint_activations,
    encode_moments,
    load_autoencoder,
    spatial_factor,
    with_latent_channels,
)

TINY = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}


def tiny(**fields: object) -> AutoencoderKL:
    torch.manual_seed(0)
    return build_autoencoder(ModelConfig(**{**TINY, **fields})).eval()


def make_images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def reconstruct(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    with torch.no_grad():
        return autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample


@pytest.mark.parametrize("use_quant_conv", [True, False])
def test_one_forward_is_what_diffusers_computes(use_quant_conv: bool) -> None:
    autoencoder = tiny(use_quant_conv=use_quant_conv, attention_levels=[1])
    images, noise = make_images(), torch.randn(2, 4, 16, 16)
    trainable = TrainableAutoencoder(autoencoder, decoder_only=False, learn_logvar=False, logvar_init=0.0)
    output = trainable(images, noise)
    posterior = autoencoder.encode(images).latent_dist
    torch.testing.assert_close(output.mean, posterior.mean)
    torch.testing.assert_close(output.logvar, posterior.logvar)
    latents = posterior.mean + posterior.std * noise
    torch.testing.assert_close(output.reconstruction, autoencoder.decode(latents).sample)
    torch.testing.assert_close(trainable.last_layer(output.features), output.reconstruction)
    mean, std = encode_moments(autoencoder, images)
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(std, posterior.std)


def test_attention_stands_inside_levels_and_after_each_residual_block() -> None:
    autoencoder = tiny(block_out_channels=[8, 8, 16], attention_levels=[2], layers_per_block=2)
    down = [len(getattr(block, "attentions", [])) for block in autoencoder.encoder.down_blocks]
    up = [len(getattr(block, "attentions", [])) for block in autoencoder.decoder.up_blocks]
    assert (down, up) == ([0, 0, 2], [3, 0, 0])
    assert autoencoder.encoder.mid_block.attentions[0] is not None
    assert spatial_factor(autoencoder) == 4
    without = tiny(mid_block_add_attention=False)
    assert not any("attentions" in name for name in without.state_dict())


@pytest.mark.parametrize("use_quant_conv", [True, False])
@pytest.mark.parametrize("latent_channels", [16, 2])
def test_other_latent_channels_keep_the_old_ones(latent_channels: int, use_quant_conv: bool) -> None:
    autoencoder = tiny(use_quant_conv=use_quant_conv)
    images = make_images()
    widened = with_latent_channels(autoencoder, latent_channels)
    kept = min(4, latent_channels)
    for old, new in zip(encode_moments(autoencoder, images), encode_moments(widened, images), strict=True):
        assert new.shape[1] == latent_channels
        torch.testing.assert_close(new[:, :kept], old[:, :kept])
    if latent_channels > 4:
        torch.testing.assert_close(reconstruct(widened, images), reconstruct(autoencoder, images))
        other = encode_moments(widened, images)[0][:, 4:]
        assert other.std() > 0  # the new channels are not dead
        widened.train().requires_grad_(True)
        latents = widened.encode(images).latent_dist.mean
        widened.decode(latents).sample.square().mean().backward()
        assert widened.decoder.conv_in.weight.grad[:, 4:].abs().sum() > 0


def test_loads_a_folder_a_pipeline_and_a_single_file(tmp_path: Path) -> None:
    autoencoder = tiny()
    autoencoder.save_pretrained(tmp_path / "vae")
    (tmp_path / "half").mkdir()
    autoencoder.half().save_pretrained(tmp_path / "half", variant="fp16")
    images = make_images()
    expected = reconstruct(load_autoencoder(tmp_path / "vae"), images)
    for source in (tmp_path, str(tmp_path / "vae")):  # a pipeline's folder, and the model's
        loaded = load_autoencoder(source)
        assert not loaded.training
        torch.testing.assert_close(reconstruct(loaded, images), expected, rtol=0, atol=0)
    half = load_autoencoder(tmp_path / "half")
    assert half.dtype == torch.float32
    torch.testing.assert_close(reconstruct(half, images), expected, rtol=0, atol=1e-2)


def test_what_is_no_autoencoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--vae: .*empty holds no config\.json"):
        load_autoencoder(tmp_path / "empty", field="--vae")
    (tmp_path / "empty" / "config.yaml").touch()
    with pytest.raises(ValueError, match="it is a run: export it first"):
        load_autoencoder(tmp_path / "empty")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": UNet2DModel.__name__}))
    with pytest.raises(ValueError, match="holds a UNet2DModel, not an AutoencoderKL"):
        load_autoencoder(tmp_path)


def test_a_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="neither a folder or file here nor a model that the hub could give") as error:
        load_autoencoder("nobody/nothing", field="model.pretrained")
    assert "\n" not in str(error.value)


def test_channels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.in_channels is 1, but .* takes 3"):
        build_autoencoder(ModelConfig(pretrained=str(tmp_path), in_channels=1))
    widened = build_autoencoder(ModelConfig(pretrained=str(tmp_path), latent_channels=16))
    assert widened.config.latent_channels == 16
    assert widened.training


@pytest.mark.parametrize("level", ["blocks", "full"])
def test_recomputed_activations_give_the_same_gradients(level: str) -> None:
    gradients = []
    for used in ("none", level):
        autoencoder = tiny(attention_levels=[1]).train()
        checkpoint_activations(autoencoder, used)
        calls = []
        autoencoder.decoder.mid_block.resnets[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        images = make_images()
        reconstruction = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample
        (reconstruction - images).abs().mean().backward()
        gradients.append([parameter.grad for parameter in autoencoder.parameters()])
        assert len(calls) == {"none": 1, "blocks": 2, "full": 3}[used]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-8)
