"""`export` of a real run: scaling against drawn samples, bits against the checkpoint, what reads back."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.model import ModelConfig
from ldm_vae.exporting.export import export
from ldm_vae.exporting.files import check_equal
from ldm_vae.models.families import family_of
from ldm_vae.models.families.family import Family
from ldm_vae.models.load import load_autoencoder
from ldm_vae.models.rescaling import _divide_stream as divide_stream
from tests.exporting.runs import drawn_samples, export_run, photos_of, train_run
from tests.launching import run_launch
from tests.tiny import tiny_autoencoder


def test_weights_are_the_checkpoint_s_and_the_scaling_that_of_samples(run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae")
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "vae")
    trained = load_file(run / "checkpoint-000002" / "ema.safetensors")
    assert autoencoder.state_dict().keys() == trained.keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in autoencoder.state_dict().items())
    samples = drawn_samples(autoencoder, photos_of(run))
    assert autoencoder.config.scaling_factor * samples.std().item() == pytest.approx(1, abs=3e-3)
    assert autoencoder.config.shift_factor is None
    assert autoencoder.config.force_upcast is False
    assert autoencoder.config.sample_size == 512
    assert summary.latents.num_images == 6
    assert [skipped.name for skipped in summary.skipped] == ["broken.png"]
    assert "broken.png" in str(summary)
    raw = export_run(run, tmp_path / "raw", weights="raw")
    assert raw.config["scaling_factor"] != summary.config["scaling_factor"]


@pytest.mark.parametrize(("target", "shifted"), [("sd", False), ("sdxl", False), ("sd3", True), ("flux", True)])
def test_targets_that_need_a_shift_get_one(target: str, shifted: bool, run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae", target=target)
    config = AutoencoderKL.load_config(tmp_path / "vae")
    if shifted:
        assert config["shift_factor"] == summary.latents.mean
        samples = drawn_samples(AutoencoderKL.from_pretrained(tmp_path / "vae"), photos_of(run))
        normalised = (samples - config["shift_factor"]) * config["scaling_factor"]
        assert normalised.mean().item() == pytest.approx(0, abs=0.01)
        assert normalised.std().item() == pytest.approx(1, abs=0.01)
    else:
        assert config["shift_factor"] is None
    assert config["latents_mean"] is None


def test_statistics_a_channel_for_sdxl(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "vae", target="sdxl", per_channel=True)
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "vae")
    mean, std = (torch.tensor(autoencoder.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    samples = drawn_samples(autoencoder, photos_of(run))
    normalised = (samples - mean) * autoencoder.config.scaling_factor / std  # as SDXL's pipelines do
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(normalised.std(dim=(0, 2, 3)), torch.ones(4).double(), rtol=0, atol=0.02)
    with pytest.raises(ValueError, match="per_channel"):
        export_run(run, tmp_path / "other", target="sd3", per_channel=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_of_stored_weights(dtype: str, run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "vae", dtype=dtype)
    variant = "fp16" if dtype == "float16" else None
    files = {path.name for path in (tmp_path / "vae").glob("*.safetensors")}
    assert files == {"diffusion_pytorch_model.fp16.safetensors" if variant else "diffusion_pytorch_model.safetensors"}
    torch_dtype = getattr(torch, dtype)
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "vae", variant=variant, torch_dtype=torch_dtype)
    trained = load_file(run / "checkpoint-000002" / "ema.safetensors")
    for name, tensor in autoencoder.state_dict().items():
        assert torch.equal(tensor, trained[name].to(torch_dtype))
    load_autoencoder(tmp_path / "vae")


def test_single_file(run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae.safetensors", format="ldm")
    autoencoder = load_autoencoder(tmp_path / "vae.safetensors")
    trained = load_file(run / "checkpoint-000002" / "ema.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in autoencoder.state_dict().items())
    assert autoencoder.config.scaling_factor == summary.config["scaling_factor"]
    assert [path.name for path in tmp_path.iterdir()] == ["vae.safetensors"]
    with pytest.raises(ValueError, match="overwrite"):
        export_run(run, tmp_path / "vae.safetensors", format="ldm")


def test_a_tile_is_no_smaller_than_pictures_usually_are(tmp_path: Path) -> None:
    """The tiles of diffusers are of `sample_size`; a training on small crops must not make them small."""
    model = ModelConfig(
        block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )
    export_run(train_run(tmp_path, model), tmp_path / "vae")
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "vae")
    images = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        whole = autoencoder(images).sample
        autoencoder.enable_tiling()
        assert torch.equal(autoencoder(images).sample, whole)


def test_a_pretrained_model_keeps_its_tiles_unless_nobody_chose_them(tmp_path: Path) -> None:
    for chosen, expected in ((256, 256), (32, 512)):  # 32 is the class's default
        folder = tmp_path / str(chosen)
        tiny_autoencoder(widths=(8,), sample_size=chosen).save_pretrained(folder / "pretrained")
        run = train_run(folder, ModelConfig(pretrained=str(folder / "pretrained")))
        assert export_run(run, folder / "vae").config["sample_size"] == expected


def test_overflow_sets_force_upcast_and_can_be_repaired(tmp_path: Path) -> None:
    pretrained = tiny_autoencoder(widths=(8,), shift_factor=0.5)
    divide_stream(pretrained.decoder, 2.0**-17)
    pretrained.save_pretrained(tmp_path / "pretrained")
    run = train_run(tmp_path, ModelConfig(pretrained=str(tmp_path / "pretrained")))
    summary = export_run(run, tmp_path / "vae")
    assert summary.config["force_upcast"] is True
    assert summary.config["shift_factor"] is None  # the pretrained model's is no longer true
    assert "--repair" in summary.precision_statement
    repaired = export_run(run, tmp_path / "repaired", repair=True)
    assert repaired.config["force_upcast"] is False
    images = photos_of(run)
    with torch.no_grad():
        before, after = (AutoencoderKL.from_pretrained(tmp_path / name)(images).sample for name in ("vae", "repaired"))
        half = AutoencoderKL.from_pretrained(tmp_path / "repaired", torch_dtype=torch.float16)(images.half()).sample
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    assert half.isfinite().all()


def test_what_does_not_read_back_is_an_error(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "vae")

    def load() -> Family:
        return family_of(AutoencoderKL.from_pretrained(tmp_path / "vae"))

    check_equal(load(), load())
    changed = load()
    changed.model.decoder.conv_out.bias.data[0] += 1e-7
    with pytest.raises(RuntimeError, match=r"decoder\.conv_out\.bias"):
        check_equal(load(), changed)
    rescaled = load()
    rescaled.model.register_to_config(scaling_factor=0.18215)
    with pytest.raises(RuntimeError, match="scaling_factor"):
        check_equal(load(), rescaled)


@pytest.mark.processes
def test_two_processes_measure_what_one_measures(run: Path, tmp_path: Path) -> None:
    alone = export_run(run, tmp_path / "alone")
    options = ExportOptions(run=str(run), output=str(tmp_path / "both"), num_workers=0)
    run_launch(export, options, folder=tmp_path)
    measurements = json.loads((tmp_path / "both" / "measurements.json").read_text())
    assert measurements["latents"]["num_images"] == 6
    assert measurements["latents"]["std"] == pytest.approx(alone.latents.std, rel=1e-6)
    assert measurements["reconstruction"]["metrics"]["psnr"]["value"] == pytest.approx(alone.metrics["psnr"].value)
