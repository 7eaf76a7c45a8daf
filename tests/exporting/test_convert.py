"""Conversion: bit-exact round trips, LDM's own arithmetic as the judge of the names, and what is refused and why."""

from __future__ import annotations

import json
import pickle
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
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_vae.config.commands.convert import ConvertOptions
from ldm_vae.exporting.convert import WEIGHTS_NAME, convert, write_diffusers_folder
from ldm_vae.exporting.readers import reader_notes
from ldm_vae.models.layouts.ldm import diffusers_state_dict, infer_config, ldm_state_dict, read_ldm_file

DOWN, UP = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def build(*, widths: tuple[int, ...] = (8, 16), attention: tuple[bool, ...] = (False, True), **fields: Any):
    """A tiny autoencoder in eval mode, every tensor random."""
    config = {
        "block_out_channels": widths,
        "norm_num_groups": 4,
        "down_block_types": tuple(DOWN[there] for there in attention),
        "up_block_types": tuple(UP[there] for there in reversed(attention)),
    }
    autoencoder = AutoencoderKL(**(config | fields)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in autoencoder.state_dict().values():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return autoencoder


def config_of(autoencoder: AutoencoderKL) -> dict[str, Any]:
    return json.loads(autoencoder.to_json_string())


def ldm_of(autoencoder: AutoencoderKL) -> dict[str, Tensor]:
    return ldm_state_dict(autoencoder.state_dict(), config=config_of(autoencoder))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def run(source: Path, output: Path, **options: Any):
    return convert(ConvertOptions(input=str(source), output=str(output), **options))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
        latents_std=draw(statistics),
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
    """The published arithmetic over our names gives diffusers' moments and pictures; without attention in the middle
    it still runs over one, which changes nothing."""
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
    """Not one bit of what enters it, though its transposed strides may change the order of later sums; and it is taken
    for what it is without any metadata."""
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
        "this is a VQ autoencoder": ldm_state | {"quantize.embedding.weight": torch.zeros(2, 2)},
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


def test_a_config_says_what_a_foreign_file_cannot(tmp_path: Path) -> None:
    autoencoder = build()
    save_file(ldm_of(autoencoder), tmp_path / "foreign.safetensors")
    config = tmp_path / "config.json"

    def converted(fields: dict[str, Any]) -> dict[str, Any]:
        config.write_text(json.dumps(fields))
        run(tmp_path / "foreign.safetensors", tmp_path / "vae", config=str(config), overwrite=True)
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
        ({"_class_name": "AutoencoderTiny"}, "config is that of a AutoencoderTiny"),
    ):
        with pytest.raises(ValueError, match=message):
            converted(wrong)
    with pytest.raises(ValueError, match="config is for single LDM files"):
        run(tmp_path / "vae", tmp_path / "out.safetensors", config=str(config))


def test_the_layout_is_not_written_for_what_it_cannot_say() -> None:
    autoencoder = build()
    with pytest.raises(ValueError, match="act_fn is 'gelu'; the LDM layout is for 'silu' alone"):
        ldm_state_dict(autoencoder.state_dict(), config=config_of(autoencoder) | {"act_fn": "gelu"})


def test_an_output_that_is_there_stays(tmp_path: Path) -> None:
    """Refused without `overwrite`; a folder that holds anything but an export is refused even so."""
    build().save_pretrained(tmp_path / "vae")
    run(tmp_path / "vae", tmp_path / "vae.safetensors")
    other = build(scaling_factor=0.5)
    other.save_pretrained(tmp_path / "other")
    before = (tmp_path / "vae.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"vae\.safetensors is there already; --overwrite"):
        run(tmp_path / "other", tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="holds an export already; --overwrite"):
        run(tmp_path / "vae.safetensors", tmp_path / "other")
    (tmp_path / "other/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which no export wrote"):
        run(tmp_path / "vae.safetensors", tmp_path / "other", overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_text("a picture")
    with pytest.raises(ValueError, match=r"holds a\.png, which no export wrote"):
        run(tmp_path / "vae.safetensors", tmp_path / "photos", overwrite=True)
    assert (tmp_path / "vae.safetensors").read_bytes() == before
    assert AutoencoderKL.load_config(tmp_path / "other")["scaling_factor"] == 0.5

    (tmp_path / "other/thesis.tex").unlink()
    run(tmp_path / "vae.safetensors", tmp_path / "other", overwrite=True)
    assert folder_bytes(tmp_path / "other") == folder_bytes(tmp_path / "vae")
    for source, output, message in (
        ("vae", "out.ckpt", "must end in .safetensors"),
        ("vae.safetensors", "out.safetensors", "named like a file"),
        ("nowhere", "out", "there is no folder or file"),
        ("photos", "out.safetensors", r"config\.json can't be read"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / source, tmp_path / output)


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("direction", ["file", "folder"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, direction: str) -> None:
    """The file system refuses more than 20 kB, in the middle of the weights."""
    build().save_pretrained(tmp_path / "vae")
    run(tmp_path / "vae", tmp_path / "vae.safetensors")
    source, output = ("vae", "vae.safetensors") if direction == "file" else ("vae.safetensors", "vae")
    before = everything_in(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(Exception, match=r"(?i)too large"):
            run(tmp_path / source, tmp_path / output, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert everything_in(tmp_path) == before


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "vae")
    run(tmp_path / "vae", tmp_path / "vae.safetensors")
    run(tmp_path / "vae.safetensors", tmp_path / "back")
    (tmp_path / "plain").touch()
    written = (tmp_path / "vae.safetensors", tmp_path / "back" / WEIGHTS_NAME, tmp_path / "back/config.json")
    assert {path.stat().st_mode for path in written} == {(tmp_path / "plain").stat().st_mode}


def test_a_folder_is_replaced_only_when_all_of_it_is_written(tmp_path: Path) -> None:
    """A config that JSON can't say fails after the weights are on the disk."""
    autoencoder = build()
    autoencoder.save_pretrained(tmp_path / "vae")
    before = everything_in(tmp_path)
    state = {name: tensor + 1 for name, tensor in autoencoder.state_dict().items()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_diffusers_folder(tmp_path / "vae", state, config=config_of(autoencoder) | {"x": {1}}, overwrite=True)
    assert everything_in(tmp_path) == before


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


def test_the_summary_says_what_others_would_read_otherwise(tmp_path: Path) -> None:
    build().half().save_pretrained(tmp_path / "vae")
    summary = run(tmp_path / "vae", tmp_path / "vae.safetensors")
    assert str(summary).startswith(f"{tmp_path / 'vae.safetensors'}: single LDM file, 154 tensors, 0.1 MB, float16\n")
    assert "norm_num_groups 4, attention inside levels" in str(summary)
    stated = json.loads(metadata_of(tmp_path / "vae.safetensors")["ldm_vae.config"])
    assert stated == json.loads((tmp_path / "vae/config.json").read_text())


@pytest.mark.parametrize(
    ("fields", "comfyui", "a1111"),
    [
        ({}, True, True),
        ({"block_out_channels": (128, 256, 512)}, True, False),  # f4, which ComfyUI recognises
        ({"latent_channels": 16}, True, False),
        ({"latent_channels": 64}, False, False),  # taken for HunyuanImage's
        ({"use_quant_conv": False, "use_post_quant_conv": False}, True, False),
        ({"block_out_channels": (64, 128, 256, 256)}, False, False),
    ],
)
def test_who_can_use_a_file_is_told(fields: dict[str, Any], comfyui: bool, a1111: bool) -> None:
    levels = len(fields.get("block_out_channels", (128, 256, 512, 512)))
    published = {"_class_name": "AutoencoderKL", "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
                 "down_block_types": DOWN[:1] * levels, "up_block_types": UP[:1] * levels}  # fmt: skip
    told = " ".join(reader_notes(published | fields))
    assert ("ComfyUI" not in told) == comfyui
    assert ("A1111" not in told) == a1111


def test_the_tensors_counted_are_those_of_the_output(tmp_path: Path) -> None:
    """Without attention in the middle the file holds twenty tensors more, which change nothing."""
    build(mid_block_add_attention=False).save_pretrained(tmp_path / "vae")
    summary = run(tmp_path / "vae", tmp_path / "vae.safetensors")
    written = load_file(tmp_path / "vae.safetensors")
    assert summary.num_tensors == len(written)
    assert summary.num_bytes == sum(tensor.nbytes for tensor in written.values())
    back = run(tmp_path / "vae.safetensors", tmp_path / "back")
    assert back.num_tensors == len(load_file(tmp_path / "back" / WEIGHTS_NAME)) == len(written) - 20
