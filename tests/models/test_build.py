"""The autoencoder that a config asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.build import build_autoencoder
from ldm_vae.models.layouts.ldm import ldm_state_dict
from tests.tiny import random_images, tiny_family


def test_attention_stands_inside_levels_and_after_each_residual_block() -> None:
    family = tiny_family(block_out_channels=[8, 8, 16], attention_levels=[2], layers_per_block=2)
    autoencoder = family.model
    down = [len(getattr(block, "attentions", [])) for block in autoencoder.encoder.down_blocks]
    up = [len(getattr(block, "attentions", [])) for block in autoencoder.decoder.up_blocks]
    assert (down, up) == ([0, 0, 2], [3, 0, 0])
    assert autoencoder.encoder.mid_block.attentions[0] is not None
    assert family.spatial_factor == 4
    without = tiny_family(mid_block_add_attention=False)
    assert not any("attentions" in name for name in without.model.state_dict())


def test_channels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tiny_family().model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.in_channels is 1, but .* takes 3"):
        build_autoencoder(ModelConfig(pretrained=str(tmp_path), in_channels=1))
    widened = build_autoencoder(ModelConfig(pretrained=str(tmp_path), latent_channels=16))
    assert widened.latent_channels == 16
    assert widened.model.training


def test_a_loaded_model_says_its_own_family(tmp_path: Path) -> None:
    tiny_family(family="flux2").model.save_pretrained(tmp_path)
    assert build_autoencoder(ModelConfig(pretrained=str(tmp_path))).name == "flux2"
    with pytest.raises(ValueError, match=r"model\.family is kl, but .* is of the family flux2; leave it out"):
        build_autoencoder(ModelConfig(pretrained=str(tmp_path), family="kl"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottleneck": "vq"}, r"bottleneck is vq; the family kl has gaussian, and vq is for model\.family vq"),
        ({"family": "vq", "bottleneck": "deterministic"}, r"and deterministic is for model\.family tiny or dc"),
        ({"codebook_size": 64}, r"codebook_size is 64, but the family kl has no codes; .* take model\.family vq"),
        ({"family": "dc", "fsq_levels": [4, 3]}, r"fsq_levels is \[4, 3\], but the family dc has no codes"),
        ({"family": "vq", "use_quant_conv": False}, r"use_quant_conv is false; the family vq always has"),
    ],
)
def test_what_a_family_has_not_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_family(**fields)


def test_classes_without_a_family_are_refused_with_those_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(
        ValueError, match=r"model\.pretrained: .* holds an AutoencoderKLWan, not one of AutoencoderKL,"
    ):
        build_autoencoder(ModelConfig(pretrained=str(tmp_path)))


def test_a_single_file_to_start_from_takes_its_config(tmp_path: Path) -> None:
    """Four groups instead of the published 32, which the file can't say."""
    family = tiny_family()
    config = json.loads(family.model.to_json_string())
    foreign = ldm_state_dict(family.model.state_dict(), config=config)
    save_file({name: tensor.contiguous() for name, tensor in foreign.items()}, tmp_path / "vae.safetensors")
    start = ModelConfig(pretrained=str(tmp_path / "vae.safetensors"))
    with pytest.raises(ValueError, match="norm_num_groups is 32"):
        build_autoencoder(start)
    (tmp_path / "config.json").write_text('{"norm_num_groups": 4}')
    loaded = build_autoencoder(replace(start, pretrained_config=str(tmp_path / "config.json")))
    images = random_images()
    torch.testing.assert_close(loaded.eval().reconstruct(images).images, family.reconstruct(images).images)
