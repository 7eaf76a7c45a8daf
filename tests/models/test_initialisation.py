"""Quiet first weights: what is zero, and that the signal keeps its scale."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.build import build_autoencoder

DEEP = {"block_out_channels": [16, 16, 32, 32], "layers_per_block": 2, "norm_num_groups": 8}


def build(**fields: object):
    torch.manual_seed(0)
    return build_autoencoder(ModelConfig(**DEEP | {"init": "quiet"} | fields)).eval().model


def test_residual_branches_start_at_zero():
    autoencoder = build(attention_levels=[3])
    branches = [module for module in autoencoder.modules() if isinstance(module, (ResnetBlock2D, Attention))]
    assert any(isinstance(branch, Attention) for branch in branches)
    for branch in branches:
        width = branch.conv1.in_channels if isinstance(branch, ResnetBlock2D) else branch.to_q.in_features
        hidden = torch.randn(2, width, 8, 8)
        output = branch(hidden, None) if isinstance(branch, ResnetBlock2D) else branch(hidden)
        shortcut = getattr(branch, "conv_shortcut", None)
        torch.testing.assert_close(output, hidden if shortcut is None else shortcut(hidden))


@pytest.mark.parametrize("use_quant_conv", [True, False])
@torch.no_grad()
def test_posterior_starts_narrow_and_latents_keep_their_scale(use_quant_conv: bool):
    autoencoder = build(use_quant_conv=use_quant_conv)
    posterior = autoencoder.encode(torch.randn(8, 3, 32, 32).clamp(-1, 1)).latent_dist
    assert torch.equal(posterior.logvar, torch.full_like(posterior.logvar, -6.0))
    assert 0.3 < posterior.mean.std() < 3
    reconstruction = autoencoder.decode(posterior.mean).sample
    assert 0.3 < reconstruction.std() < 3


def test_a_layer_keeps_its_inputs_scale():
    layers = [module for module in build().modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    wide = [layer for layer in layers if layer.weight.numel() > 2000 and layer.weight.any()]
    assert len(wide) > 10
    for layer in wide:
        fan_in = layer.weight[0].numel()
        assert layer.weight.square().mean().item() * fan_in == pytest.approx(1, rel=0.15)
        assert not layer.bias.any()


def test_gradient_reaches_every_weight_after_one_update():
    autoencoder = build()
    optimizer = torch.optim.SGD(autoencoder.parameters(), lr=0.1)
    images = torch.randn(4, 3, 32, 32).clamp(-1, 1)
    for _ in range(2):
        optimizer.zero_grad()
        posterior = autoencoder.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        ((autoencoder.decode(latents).sample - images) ** 2 + 1e-3 * posterior.kl().mean()).mean().backward()
        optimizer.step()
    still = [name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()]
    without_effect = {f"{half}.mid_block.attentions.0.to_k.bias" for half in ("encoder", "decoder")}  # but by rounding
    assert set(still) <= without_effect


def test_torch_is_the_default_and_a_pretrained_model_keeps_its_weights(tmp_path):
    torch.manual_seed(0)
    plain = build_autoencoder(ModelConfig(**DEEP)).model
    assert not torch.equal(
        plain.encoder.mid_block.resnets[0].conv2.weight, build().encoder.mid_block.resnets[0].conv2.weight
    )
    plain.save_pretrained(tmp_path)
    loaded = build_autoencoder(ModelConfig(pretrained=str(tmp_path), init="quiet")).model
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
