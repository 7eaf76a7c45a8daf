"""The autoencoder that a config asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.build import build_autoencoder
from tests.tiny import tiny_family


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
