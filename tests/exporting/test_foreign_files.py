"""Files that others wrote: their names for tensors, full checkpoints, pickles, and what a file cannot say."""

from __future__ import annotations

import json
import re
import resource
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_vae.exporting.convert import WEIGHTS_NAME
from ldm_vae.models.layouts.ldm import diffusers_state_dict, read_ldm_file
from tests.exporting.ldm_files import assert_same, build, config_of, ldm_of, run

OLD_LDM = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}


NEW_LDM = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "norm"}


@pytest.mark.parametrize("names", [{}, OLD_LDM, NEW_LDM])
@pytest.mark.parametrize("shape", [(-1, 16), (-1, 16, 1), (-1, 16, 1, 1)])
def test_attention_of_other_converters_is_read(names: dict[str, str], shape: tuple[int, ...]) -> None:
    autoencoder = build()
    foreign = {}
    for name, tensor in ldm_of(autoencoder).items():
        attention = re.match(r"(.*(?:attn_1|attn\.\d+))\.(\w+)\.(\w+)$", name)
        if attention:
            name = f"{attention[1]}.{names.get(attention[2], attention[2])}.{attention[3]}"
            tensor = tensor.reshape(shape) if tensor.ndim == 4 else tensor.reshape(16, 1, 1)
        foreign[name] = tensor
    state, _ = diffusers_state_dict(foreign, config=config_of(autoencoder))
    assert_same(state, autoencoder.state_dict())


def test_old_folder_names_are_read(tmp_path: Path) -> None:
    """As in the folders published before diffusers renamed its attention, pickles among them."""
    autoencoder = build()
    autoencoder.save_config(tmp_path / "old")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {re.sub(r"to_(q|k|v|out\.0)", lambda m: old[m[0]], k): v for k, v in autoencoder.state_dict().items()}
    torch.save(state, tmp_path / "old/diffusion_pytorch_model.bin")
    run(tmp_path / "old", tmp_path / "vae.safetensors")
    assert_same(read_ldm_file(tmp_path / "vae.safetensors").model.state_dict(), autoencoder.state_dict())


def test_a_variant_in_a_pipelines_folder_is_read(tmp_path: Path) -> None:
    """What `export --dtype float16` writes, inside a pipeline; the unnamed weights come first where there are both."""
    half, full = build().half(), build(scaling_factor=0.5)
    half.save_pretrained(tmp_path / "pipeline/vae", variant="fp16")
    run(tmp_path / "pipeline", tmp_path / "half.safetensors")
    assert_same(load_file(tmp_path / "half.safetensors"), ldm_of(half))
    full.save_pretrained(tmp_path / "pipeline/vae")
    run(tmp_path / "pipeline", tmp_path / "full.safetensors")
    assert_same(load_file(tmp_path / "full.safetensors"), ldm_of(full))


def full_checkpoint(path: Path, *, autoencoder: AutoencoderKL, other: str) -> None:
    """Write a full checkpoint whose other part claims 2 GiB (of a sparse file)."""
    save_file({f"first_stage_model.{name}": tensor for name, tensor in ldm_of(autoencoder).items()}, path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header[other] = {"dtype": "F32", "shape": [2**29], "data_offsets": [len(data), len(data) + 2**31]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
        file.truncate(8 + len(text) + len(data) + 2**31)


@pytest.mark.parametrize(
    ("other", "scaling"),
    [
        ("cond_stage_model.transformer.weight", (0.18215, None)),
        ("conditioner.embedders.1.model.weight", (0.13025, None)),
        ("model.diffusion_model.joint_blocks.0.weight", (1.5305, 0.0609)),
        ("model.diffusion_model.double_blocks.0.weight", (0.3611, 0.1159)),
    ],
)
def test_a_full_checkpoint_gives_its_vae_and_its_familys_scaling(
    tmp_path: Path, other: str, scaling: tuple[float, float | None]
) -> None:
    autoencoder = build(widths=(32, 32), norm_num_groups=32)
    full_checkpoint(tmp_path / "full.safetensors", autoencoder=autoencoder, other=other)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = run(tmp_path / "full.safetensors", tmp_path / "vae")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**19  # KiB: the rest was never loaded
    loaded = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert_same(loaded.state_dict(), autoencoder.state_dict())
    assert (loaded.config.scaling_factor, loaded.config.shift_factor) == scaling
    assert summary.assumed["norm_num_groups"] == 32
    assert f"scaling_factor {scaling[0]}" in str(summary)


def lightning_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """What the published trainer left: discriminator and averages beside the model, a callback's class as a key."""
    leftovers = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.tensor(0.999)}
    return {"epoch": 3, "state_dict": OrderedDict(state | leftovers), "callbacks": {"best": 0.1}}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_weights_is_read(tmp_path: Path, zipped: bool) -> None:
    autoencoder = build(widths=(32,), attention=(True,), norm_num_groups=32)
    path = tmp_path / "kl.ckpt"
    torch.save(lightning_checkpoint(ldm_of(autoencoder)), path, _use_new_zipfile_serialization=zipped)
    summary = run(path, tmp_path / "vae")
    assert summary.left_out == ["loss.logvar", "model_ema.decay"]
    assert_same(load_file(tmp_path / "vae" / WEIGHTS_NAME), autoencoder.state_dict())


def test_a_class_that_a_pickle_only_names_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    autoencoder = build(widths=(32,), attention=(False,), norm_num_groups=32)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        torch.save({"state_dict": ldm_of(autoencoder), "callbacks": {callback: {"epoch": 1}}}, tmp_path / "sd.ckpt")
    assert_same(read_ldm_file(tmp_path / "sd.ckpt").model.state_dict(), autoencoder.state_dict())


def test_a_config_says_what_a_foreign_file_cannot(tmp_path: Path) -> None:
    autoencoder = build()
    save_file(ldm_of(autoencoder), tmp_path / "foreign.safetensors")
    config = tmp_path / "config.json"

    def converted(fields: dict[str, Any]) -> dict[str, Any]:
        config.write_text(json.dumps(fields))
        run(tmp_path / "foreign.safetensors", tmp_path / "vae", vae_config=str(config), overwrite=True)
        return json.loads((tmp_path / "vae/config.json").read_text())

    fields = {"norm_num_groups": 4, "scaling_factor": 0.7, "shift_factor": 0.1, "latents_mean": [1.0, 2.0, 3.0, 4.0]}
    said = converted(fields)
    assert {name: said[name] for name in fields} == fields
    assert said["force_upcast"] is True
    for wrong, message in (
        ({}, "norm_num_groups is 32, which does not divide the widths"),
        ({"norm_num_groups": 4, "latent_channels": 16}, "config says latent_channels 16, the tensors say 4"),
        (
            {"norm_num_groups": 4, "scale_factor": 1.0},
            "config has no field 'scale_factor'; did you mean 'scaling_factor'",
        ),
        ({"_class_name": "AutoencoderTiny"}, "config is that of AutoencoderTiny"),
    ):
        with pytest.raises(ValueError, match=message):
            converted(wrong)
    with pytest.raises(ValueError, match="vae_config is for single LDM files"):
        run(tmp_path / "vae", tmp_path / "out.safetensors", vae_config=str(config))
    config.write_text(json.dumps({"norm_num_groups": 4, "scaling_factor": 0.7}))
    said = {"vae_config": str(config), "scaling_factor": 0.5, "shift_factor": -0.25, "overwrite": True}
    assert run(tmp_path / "foreign.safetensors", tmp_path / "vae", **said).config["scaling_factor"] == 0.5
    back = run(tmp_path / "vae", tmp_path / "out.safetensors", scaling_factor=0.6)
    assert (back.config["scaling_factor"], back.config["shift_factor"]) == (0.6, -0.25)
