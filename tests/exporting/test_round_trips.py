"""Between both layouts and back: bit-exact, with LDM's own arithmetic as the judge of the names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from ldm_vae.models.layouts.ldm import diffusers_state_dict, read_ldm_file
from ldm_vae.models.layouts.ldm_config import infer_config
from tests.exporting.ldm_files import UP, assert_same, build, config_of, folder_bytes, ldm_of, metadata_of, run


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `build`."""
    levels = draw(st.integers(1, 4))
    latent_channels = draw(st.integers(1, 5))
    statistics = st.none() | st.lists(st.floats(-3, 3), min_size=latent_channels, max_size=latent_channels)
    groups = draw(st.sampled_from([1, 2, 4]))
    flags = st.booleans()
    return dict(
        widths=tuple(groups * draw(st.integers(1, 3)) for _ in range(levels)),
        attention=tuple(draw(flags) for _ in range(levels)),
        up_block_types=tuple(UP[draw(flags)] for _ in range(levels)),
        norm_num_groups=groups,
        layers_per_block=draw(st.integers(1, 3)),
        in_channels=draw(st.sampled_from([1, 3, 4])),
        out_channels=draw(st.sampled_from([1, 3, 4])),
        latent_channels=latent_channels,
        mid_block_add_attention=draw(flags),
        use_quant_conv=draw(flags),
        use_post_quant_conv=draw(flags),
        force_upcast=draw(flags),
        sample_size=draw(st.integers(16, 1024)),
        scaling_factor=draw(st.floats(0.01, 10)),
        shift_factor=draw(st.none() | st.floats(-1, 1)),
        latents_mean=draw(statistics),
        latents_std=draw(
            st.none() | st.lists(st.floats(0.01, 100), min_size=latent_channels, max_size=latent_channels)
        ),
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(architecture=architectures(), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_round_trips_are_exact(
    architecture: dict[str, Any], dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Folder to file to folder, and that file to folder to file; and the file alone gives the same model."""
    autoencoder = build(**architecture).to(dtype)
    path = tmp_path_factory.mktemp("round")
    autoencoder.save_pretrained(path / "vae")
    run(path / "vae", path / "one.safetensors")
    run(path / "one.safetensors", path / "back")
    assert folder_bytes(path / "back") == folder_bytes(path / "vae")
    run(path / "back", path / "two.safetensors")
    assert_same(load_file(path / "two.safetensors"), load_file(path / "one.safetensors"))
    assert metadata_of(path / "two.safetensors") == metadata_of(path / "one.safetensors")

    loaded = read_ldm_file(path / "one.safetensors").model
    assert config_of(loaded) == config_of(autoencoder)
    assert_same(loaded.state_dict(), autoencoder.float().state_dict())


class Ldm:
    """The published architecture by its own names, written plainly: the judge of what a tensor's name means."""

    def __init__(self, state: dict[str, Tensor], *, groups: int) -> None:
        self.state, self.groups = state, groups

    def has(self, start: str) -> bool:
        return any(name.startswith(start) for name in self.state)

    def conv(self, name: str, h: Tensor, **how: int) -> Tensor:
        return F.conv2d(h, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def norm(self, name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, self.groups, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def block(self, name: str, h: Tensor) -> Tensor:
        r = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)), padding=1)
        r = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", r)), padding=1)
        return r + (self.conv(f"{name}.nin_shortcut", h) if self.has(f"{name}.nin_shortcut") else h)

    def attention(self, name: str, h: Tensor) -> Tensor:
        if not self.has(f"{name}."):
            return h
        normed = self.norm(f"{name}.norm", h)
        q, k, v = (self.conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")  # [B, C, HW]
        weights = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, dim=2)  # [B, HW, HW]
        return h + self.conv(f"{name}.proj_out", (v @ weights.transpose(1, 2)).reshape(h.shape))

    def middle(self, name: str, h: Tensor) -> Tensor:
        return self.block(f"{name}.block_2", self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", h)))

    def level(self, name: str, h: Tensor) -> Tensor:
        j = 0
        while self.has(f"{name}.block.{j}."):
            h = self.attention(f"{name}.attn.{j}", self.block(f"{name}.block.{j}", h))
            j += 1
        return h

    def encode(self, h: Tensor) -> Tensor:
        h, i = self.conv("encoder.conv_in", h, padding=1), 0
        while self.has(f"encoder.down.{i}."):
            h = self.level(f"encoder.down.{i}", h)
            if self.has(f"encoder.down.{i}.downsample"):
                h = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
            i += 1
        h = F.silu(self.norm("encoder.norm_out", self.middle("encoder.mid", h)))
        h = self.conv("encoder.conv_out", h, padding=1)
        return self.conv("quant_conv", h) if self.has("quant_conv") else h

    def decode(self, h: Tensor) -> Tensor:
        h = self.conv("post_quant_conv", h) if self.has("post_quant_conv") else h
        h = self.middle("decoder.mid", self.conv("decoder.conv_in", h, padding=1))
        for i in reversed(range(sum(self.has(f"decoder.up.{i}.") for i in range(9)))):
            h = self.level(f"decoder.up.{i}", h)
            if self.has(f"decoder.up.{i}.upsample"):
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = self.conv(f"decoder.up.{i}.upsample.conv", h, padding=1)
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", h)), padding=1)


@pytest.mark.parametrize("mid", [True, False])
@pytest.mark.parametrize("quant", [True, False])
@torch.no_grad()
def test_names_mean_what_ldm_means_by_them(mid: bool, quant: bool) -> None:
    """The published arithmetic over our names gives diffusers' moments and pictures.

    It runs over an attention in the middle even where the model has none; that one changes nothing.
    """
    autoencoder = build(
        widths=(4, 8, 12), attention=(True, False, True), layers_per_block=2, mid_block_add_attention=mid,
        use_quant_conv=quant, use_post_quant_conv=quant,
    ).double()  # fmt: skip
    ldm = Ldm(ldm_of(autoencoder), groups=4)
    assert ldm.has("decoder.mid.attn_1.q.weight")
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64) * 2 - 1
    moments = autoencoder.encode(images).latent_dist.parameters
    torch.testing.assert_close(ldm.encode(images), moments, rtol=0, atol=1e-10)
    latents = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(ldm.decode(latents), autoencoder.decode(latents).sample, rtol=0, atol=1e-10)


@torch.no_grad()
def test_attention_written_for_other_readers_changes_nothing() -> None:
    """It changes no bit of what enters it, though its transposed strides may change the order of later sums.

    Reading recognises it without any metadata.
    """
    autoencoder = build(mid_block_add_attention=False).double()
    ldm_state = ldm_of(autoencoder)
    state, config = diffusers_state_dict(ldm_state, config=config_of(autoencoder) | {"mid_block_add_attention": True})
    attentive = AutoencoderKL.from_config(config).eval().double()
    attentive.load_state_dict(state)
    hidden = torch.randn(1, 16, 8, 8, dtype=torch.float64)
    for part in (attentive.encoder, attentive.decoder):
        assert torch.equal(part.mid_block.attentions[0](hidden), hidden)
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(attentive(images).sample, autoencoder(images).sample, rtol=0, atol=1e-12)

    found, config = diffusers_state_dict(ldm_state, config=infer_config(ldm_state) | {"norm_num_groups": 4})
    assert config["mid_block_add_attention"] is False
    assert_same(found, autoencoder.state_dict())
    ldm_state["decoder.mid.attn_1.v.bias"] = torch.full((16,), 1e-30, dtype=torch.float64)
    assert infer_config(ldm_state)["mid_block_add_attention"] is True


@pytest.mark.parametrize("mid", [True, False])
def test_diffusers_loads_our_file(tmp_path: Path, mid: bool) -> None:
    """`from_single_file`, offline: with a folder for the config, or with the published YAML's fields."""
    autoencoder = build(widths=(32, 64), attention=(False, False), norm_num_groups=32, mid_block_add_attention=mid,
                        scaling_factor=0.5)  # fmt: skip
    autoencoder.save_pretrained(tmp_path / "vae")
    run(tmp_path / "vae", tmp_path / "vae.safetensors")
    loaded = AutoencoderKL.from_single_file(str(tmp_path / "vae.safetensors"), config=str(tmp_path / "vae"))
    assert_same(loaded.state_dict(), autoencoder.state_dict())
    assert loaded.config.scaling_factor == 0.5
    ddconfig = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "in_channels": 3, "out_ch": 3, "z_channels": 4}
    published = {"model": {"params": {"first_stage_config": {"params": {"ddconfig": ddconfig}}, "scale_factor": 0.5}}}
    loaded = AutoencoderKL.from_single_file(str(tmp_path / "vae.safetensors"), original_config=published)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded(images).sample, autoencoder(images).sample)
