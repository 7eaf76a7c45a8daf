"""What is no autoencoder, or no whole one, is refused with the reason."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm_vae.exporting.convert import WEIGHTS_NAME
from ldm_vae.models.layouts.ldm import diffusers_state_dict, ldm_state_dict, read_ldm_file
from tests.exporting.ldm_files import build, config_of, ldm_of, run


class RunsCode:
    """A harmless stand-in for a hostile pickle: reading it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, kind: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "vae.pt"
    content = {"state_dict": ldm_of(build()) if kind == "torch" else {}, "hook": RunsCode(trace)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"vae\.pt is a pickle that would run .*; take its safetensors version"):
        run(path, tmp_path / "out")
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "a LoRA"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a UNet in LDM layout"),
        (["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"], "a full checkpoint without a VAE"),
        (["down_blocks.0.resnets.0.conv1.weight", "time_embedding.linear_1.weight"], "a UNet of diffusers"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "a diffusion transformer"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a text encoder"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["emb_params"], "an embedding"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight"], "the weights of a diffusers folder; give the folder"),
        (["decoder.1.weight", "encoder.0.weight"], "a tiny autoencoder"),
        (["decoder.middle.0.residual.0.gamma"], "a video autoencoder"),
        (["speech.weight"], "something unknown, with names such as speech.weight"),
    ],
)
def test_what_is_no_vae_is_told_by_what_it_looks_like(tmp_path: Path, names: list[str], kind: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"not a KL autoencoder in LDM layout; it looks like {kind}"):
        run(tmp_path / "other.safetensors", tmp_path / "out")


def test_other_autoencoders_and_broken_files_are_refused(tmp_path: Path) -> None:
    ldm_state = ldm_of(build())
    volumes = {name: t[..., None].contiguous() if "conv_in" in name else t for name, t in ldm_state.items()}
    halves = {name: tensor for name, tensor in ldm_state.items() if name.startswith("decoder.")}
    cases = {
        "this is a video autoencoder": {
            name: t.reshape(*t.shape, 1) if t.ndim == 4 else t for name, t in volumes.items()
        },
        "not a whole KL autoencoder; missing: encoder.conv_in.weight": halves,
    }
    for message, state in cases.items():
        save_file(state, tmp_path / "case.safetensors")
        with pytest.raises(ValueError, match=rf"case\.safetensors: {message}"):
            read_ldm_file(tmp_path / "case.safetensors")
    whole = (tmp_path / "case.safetensors").read_bytes()
    for content, message in ((whole[:-100], "not a whole safetensors file"), (b"plain text", "nor a readable torch")):
        (tmp_path / "broken.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_ldm_file(tmp_path / "broken.safetensors")


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    autoencoder = build()
    state = dict(autoencoder.state_dict())
    ldm_state = ldm_of(autoencoder)
    del ldm_state["decoder.up.1.block.0.norm1.bias"]
    ldm_state["encoder.conv_in.weight"] = torch.zeros(7, 3, 3, 3)
    ldm_state["encoder.surplus"] = torch.zeros(1)
    message = (
        r"missing: decoder\.up\.1\.block\.0\.norm1\.bias; extra: encoder\.surplus; "
        r"wrong shape: encoder\.conv_in\.weight is \[7, 3, 3, 3\], not \[8, 3, 3, 3\]"
    )
    with pytest.raises(ValueError, match=message):
        diffusers_state_dict(ldm_state, config=config_of(autoencoder))

    state["encoder.conv_in.bias"] = torch.zeros(9)
    del state["decoder.conv_norm_out.weight"]
    autoencoder.save_config(tmp_path / "vae")
    save_file(state, tmp_path / "vae" / WEIGHTS_NAME)
    message = r"missing: decoder\.conv_norm_out\.weight; wrong shape: encoder\.conv_in\.bias is \[9\], not \[8\]"
    with pytest.raises(ValueError, match=f"{WEIGHTS_NAME}: {message}"):
        run(tmp_path / "vae", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_layout_is_not_written_for_what_it_cannot_say() -> None:
    autoencoder = build()
    with pytest.raises(ValueError, match="act_fn is 'gelu'; the LDM layout is for 'silu' alone"):
        ldm_state_dict(autoencoder.state_dict(), config=config_of(autoencoder) | {"act_fn": "gelu"})
