"""Autoencoders loaded from where people keep them, and what is refused."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_vae.exporting.convert import write_ldm_file
from ldm_vae.exporting.fields import config_of
from ldm_vae.models.blocks import speed_up_blocks
from ldm_vae.models.layouts.folder import WEIGHTS_NAME
from ldm_vae.models.layouts.ldm import ldm_state_dict
from ldm_vae.models.load import load_autoencoder, load_vae
from tests.tiny import random_images, tiny_family


def reconstruct(source: Path | str, images: Tensor) -> Tensor:
    return load_vae(source).family.reconstruct(images).images


def test_loads_a_folder_a_pipeline_and_a_single_file(tmp_path: Path) -> None:
    autoencoder = tiny_family().model
    autoencoder.save_pretrained(tmp_path / "vae")
    (tmp_path / "half").mkdir()
    autoencoder.half().save_pretrained(tmp_path / "half", variant="fp16")
    images = random_images()
    expected = reconstruct(tmp_path / "vae", images)
    for source in (tmp_path, str(tmp_path / "vae")):  # a pipeline's folder, and the model's
        assert not load_autoencoder(source).training
        torch.testing.assert_close(reconstruct(source, images), expected, rtol=0, atol=0)
    half = load_autoencoder(tmp_path / "half")
    assert half.dtype == torch.float32
    torch.testing.assert_close(reconstruct(tmp_path / "half", images), expected, rtol=0, atol=1e-2)


def test_loads_from_an_address(tmp_path: Path) -> None:
    """A model's folder, a pipeline's, weights in shards, and a single file; and what isn't whole is none."""
    family, address = tiny_family(), f"memory://{uuid.uuid4().hex}/models"
    family.model.save_pretrained(tmp_path / "pipeline" / "vae")
    family.model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    write_ldm_file(tmp_path / "vae.safetensors", family.model.state_dict(), config=config_of(family))
    files = fsspec.filesystem("memory")
    files.put(f"{tmp_path}/", address.removeprefix("memory:/"), recursive=True)
    assert len(files.ls(f"{address}/shards")) > 3
    images = random_images()
    expected = reconstruct(tmp_path / "pipeline" / "vae", images)
    for name in ("pipeline", "pipeline/vae", "shards", "vae.safetensors"):
        torch.testing.assert_close(reconstruct(f"{address}/{name}", images), expected, rtol=0, atol=0)
    files.pipe_file(f"{address}/vae.safetensors", files.cat_file(f"{address}/vae.safetensors")[:-1])
    files.rm(f"{address}/pipeline/vae/config.json")
    for name, problem in {
        "pipeline/vae": "holds no whole autoencoder of diffusers",
        "vae.safetensors": "is not a whole safetensors file",
        "gone.safetensors": "doesn't exist; name an export, or a single file",
        "gone": "holds no whole autoencoder of diffusers",
    }.items():
        with pytest.raises(ValueError, match=rf"^vae: {address}/{name} {problem}") as error:
            load_autoencoder(f"{address}/{name}")
        assert "\n" not in str(error.value)


def test_what_is_no_autoencoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"vae: .*empty holds no config\.json"):
        load_autoencoder(tmp_path / "empty")
    (tmp_path / "empty" / "config.yaml").touch()
    with pytest.raises(ValueError, match="it is a run: export it first"):
        load_autoencoder(tmp_path / "empty")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": UNet2DModel.__name__}))
    with pytest.raises(ValueError, match="holds a UNet2DModel, not one of AutoencoderKL"):
        load_autoencoder(tmp_path)


def test_a_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="neither a folder or file here nor a model that the hub could give") as error:
        load_autoencoder("nobody/nothing", field="model.pretrained")
    assert "\n" not in str(error.value)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS_NAME)


def save(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    """A whole folder of a random model."""
    tiny_family().model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def expected(vae: Path) -> Tensor:
    return reconstruct(vae, random_images())


def test_every_kind_of_weight_file_is_read(vae: Path, expected: Tensor, tmp_path: Path) -> None:
    model = load_autoencoder(vae)
    model.save_pretrained(tmp_path / "bin", safe_serialization=False)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for kind in ("bin", "sharded"):
        assert torch.equal(reconstruct(tmp_path / kind, random_images()), expected), kind
    for variant, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        half = torch.nn.Module.to(load_autoencoder(vae), dtype)
        rounded = torch.nn.Module.to(half, torch.float32).state_dict()
        torch.nn.Module.to(half, dtype)
        half.save_pretrained(tmp_path / variant, variant=variant)
        half.save_pretrained(tmp_path / f"{variant}_bin", variant=variant, safe_serialization=False)
        half.save_pretrained(tmp_path / f"{variant}_sharded", variant=variant, max_shard_size="20KB")
        for folder in (variant, f"{variant}_bin", f"{variant}_sharded"):
            with pytest.warns(UserWarning, match=f"{variant} variant"):
                read = load_autoencoder(tmp_path / folder).state_dict()
            assert all(torch.equal(read[name], weight) for name, weight in rounded.items()), folder
    model.save_pretrained(tmp_path / "fp16")  # beside the variant: full precision comes first
    assert torch.equal(reconstruct(tmp_path / "fp16", random_images()), expected)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_compile_and_ddp_come_off(vae: Path, expected: Tensor, prefix: str) -> None:
    save(vae, {prefix + name: weight for name, weight in weights_of(vae).items()})
    assert torch.equal(reconstruct(vae, random_images()), expected)
    compiled_half = {name.replace("encoder.", "encoder._orig_mod.", 1): w for name, w in weights_of(vae).items()}
    save(vae, compiled_half)
    assert torch.equal(reconstruct(vae, random_images()), expected)


def test_weights_that_do_not_belong_to_the_config_are_named(vae: Path) -> None:
    whole = weights_of(vae)
    for state, match in (
        (
            {name: w for name, w in whole.items() if "decoder.conv_out" not in name},
            r"missing: decoder\.conv_out\.",
        ),
        (whole | {"extra.weight": torch.zeros(1)}, r"extra: extra\.weight"),
        (
            whole | {"decoder.conv_out.bias": torch.zeros(7)},
            r"wrong shape: decoder\.conv_out\.bias is \[7\], not \[3\]",
        ),
    ):
        save(vae, {name: weight.contiguous() for name, weight in state.items()})
        with pytest.raises(ValueError, match=rf"vae: .*vae.*{match}") as caught:
            load_autoencoder(vae)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no fields, but a list"),
        ("{}", "holds a None, not one of AutoencoderKL"),
        ('"block_out_channels": [1000000000, 1000000000]', "block_out_channels is .*can't be"),
        ('"latent_channels": 1000000000000000000', "latent_channels is .*can't be"),
        ('"layers_per_block": 100000', "layers_per_block is .*can't be"),
        ('"block_out_channels": "wide"', "makes no AutoencoderKL"),
        ('"down_block_types": ["NoBlock", "NoBlock"]', "makes no AutoencoderKL: .*NoBlock"),
        ('"norm_num_groups": 5', "makes no AutoencoderKL"),
        ('"scaling_factor": "0.18"', "scaling_factor is 0.18; it must be a positive number"),
        ('"scaling_factor": 0', "scaling_factor is 0; it must be a positive number"),
        ('"scaling_factor": NaN', "scaling_factor is nan; it must be a positive number"),
        ('"scaling_factor": null', "has no scaling_factor"),
        ('"shift_factor": Infinity', "shift_factor is inf; it must be a finite number"),
        ('"latents_std": [1, 0, 1, 1]', "latents_std is .*; it must be a positive number"),
    ],
)
def test_broken_and_absurd_configs_are_one_line(vae: Path, text: str, match: str) -> None:
    config = (vae / "config.json").read_text()
    if text.startswith('"'):
        name = text.split(":")[0].strip('"')
        text = json.dumps({**json.loads(config), name: json.loads("{" + text + "}")[name]})
    (vae / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"vae: .*{match}") as caught:
        load_autoencoder(vae)
    assert "\n" not in str(caught.value)


def test_headers_that_claim_absurd_sizes_are_one_line(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}}).encode()
    for content in (
        (2**60).to_bytes(8, "little") + b"{" + b" " * 100,
        len(header).to_bytes(8, "little") + header,
        b"\x80\x02" + b"garbage" * 20,
        b"",
    ):
        (tmp_path / "vae.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"vae: .*vae\.safetensors") as caught:
            load_autoencoder(tmp_path / "vae.safetensors")
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)


def test_shards_outside_the_folder_are_refused(vae: Path) -> None:
    (vae / WEIGHTS_NAME).rename(vae.parent / "elsewhere.safetensors")
    (vae / f"{WEIGHTS_NAME}.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match=r"names '\.\./elsewhere\.safetensors', which is no file beside it"):
        load_autoencoder(vae)


def ldm_file(path: Path, **fields: object) -> Path:
    """Write a bare single file, without our metadata."""
    family = tiny_family(norm_num_groups=8, block_out_channels=[32, 32], **fields)
    config = json.loads(family.model.to_json_string())
    torch.save(ldm_state_dict(family.model.state_dict(), config=config), path)
    return path


def test_checkpoints_of_training_programs_are_read(tmp_path: Path) -> None:
    path = ldm_file(tmp_path / "vae.pt")
    state = torch.load(path, weights_only=True)
    with pytest.warns(UserWarning, match="as published"):
        images, plain = random_images(), reconstruct(path, random_images())
    averaged = {name: weight + 1 for name, weight in state.items()}
    beside = {f"model_ema.{name.replace('.', '')}": weight for name, weight in averaged.items()}
    for content, told in (
        ({"model": state}, None),
        ({"state_dict": state, "epoch": 3}, None),
        ({"module": state, "optimizer": {"state": {}, "param_groups": []}}, None),
        ({"checkpoint": {"model": {f"module.{name}": weight for name, weight in state.items()}}}, None),
        ({"model": state, "model_ema": averaged}, "model_ema; among them averaged weights"),
        ({"state_dict": state | beside}, "averaged weights"),
    ):
        torch.save(content, path)
        with pytest.warns(UserWarning, match=told or "as published"):
            assert torch.equal(reconstruct(path, images), plain)
    torch.save({"first": state, "second": averaged}, path)
    with pytest.raises(ValueError, match=r"holds no weights under a name that is known .* but first, second"):
        load_autoencoder(path)


def test_a_file_of_several_published_scalings_asks_for_one(tmp_path: Path) -> None:
    path = ldm_file(tmp_path / "ae.pt", latent_channels=16, use_quant_conv=False)
    with pytest.raises(ValueError, match=r"vae: .*16 latent channels.*SD3's are 1\.5305.*FLUX's 0\.3611"):
        load_autoencoder(path)
    with pytest.warns(UserWarning, match="norm_num_groups 32"):
        flux = load_vae(path, scaling_factor=0.3611, shift_factor=0.1159)
    assert flux.family.scaling == {
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "latents_mean": None, "latents_std": None
    }  # fmt: skip
    assert not any("scaling_factor" in note for note in flux.notes)
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": 1.5305, "shift_factor": 0.0609}))
    with pytest.warns(UserWarning, match="as published"):
        assert load_vae(path, config=tmp_path / "config.json").family.scaling["shift_factor"] == 0.0609
    with pytest.warns(UserWarning, match=r"scaling_factor 0\.18215"):
        assert load_vae(path, needs_scaling=False).family.latent_channels == 16  # told all the same
    four = ldm_file(tmp_path / "four.pt")
    with pytest.warns(UserWarning, match=r"scaling_factor 0\.18215"):
        assert load_vae(four).family.scaling["scaling_factor"] == 0.18215


@torch.no_grad()
def test_other_activation_functions_are_computed_as_such(vae: Path) -> None:
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**config, "act_fn": "gelu"}))
    plain, images = AutoencoderKL.from_pretrained(vae).eval(), random_images()
    expected = plain.decode(plain.encode(images).latent_dist.mean).sample
    family = load_vae(vae).family
    speed_up_blocks(family.model)
    torch.testing.assert_close(family.reconstruct(images).images, expected)
    (vae / "config.json").write_text(json.dumps(config))
    assert not torch.allclose(reconstruct(vae, images), expected, atol=1e-3)
