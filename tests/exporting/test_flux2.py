"""AutoencoderKLFlux2: statistics of its latents measured exactly, and what Flux2Pipeline makes of an export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, Flux2Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_vae import decode_latents, encode_images, load_autoencoder
from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.data import DataConfig
from ldm_vae.config.loss import LossConfig
from ldm_vae.config.model import ModelConfig
from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from ldm_vae.exporting.export import export
from ldm_vae.images.transforms import to_tensor
from ldm_vae.training.loop import train
from tests.exporting.tiny_pipelines import tiny_flux2_pipeline
from tests.launching import run_launch
from tests.pictures import save_pictures

SIDE = 16
MODEL = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}


def train_run(folder: Path, model: ModelConfig) -> Path:
    photos = save_pictures(folder / "photos", count=5, size=(SIDE, SIDE))
    config = Config(
        output_dir=str(folder / "run"),
        report_to="none",
        model=model,
        data=DataConfig(train=str(photos), resolution=SIDE, num_workers=0),
        loss=LossConfig(perceptual="none", disc_weight=0.0),
        train=TrainConfig(batch_size=2, max_train_steps=2, mixed_precision="no", compile="off"),
    )
    train(config)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("flux2"), ModelConfig(family="flux2", latent_channels=3, **MODEL))


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(run, tmp_path_factory.mktemp("exported") / "vae")


def export_run(run: Path, output: Path, **options: object) -> Path:
    export(ExportOptions(run=str(run), output=str(output), num_workers=0, **options))  # type: ignore[arg-type]
    return output


def photos_of(run: Path) -> Tensor:
    paths = sorted((run.parent / "photos").glob("*.png"))
    return torch.stack([to_tensor(Image.open(path)) for path in paths])


def patches_of(vae: AutoencoderKLFlux2, images: Tensor) -> Tensor:
    with torch.no_grad():
        return Flux2Pipeline._patchify_latents(vae.encode(images).latent_dist.mode())


def test_statistics_are_those_of_the_patches_over_the_data(run: Path, exported: Path) -> None:
    vae = AutoencoderKLFlux2.from_pretrained(exported)
    patches = patches_of(vae, photos_of(run)).double()
    mean, variance = patches.mean(dim=(0, 2, 3)), patches.var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(vae.bn.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vae.bn.running_var.double(), variance, rtol=1e-5, atol=0)
    assert vae.config.batch_norm_eps == 1e-4
    trained = load_file(run / "checkpoint-000002/ema.safetensors")
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, trained[name]) == (name not in ("bn.running_mean", "bn.running_var")), name


@pytest.mark.processes
def test_two_processes_measure_the_same_bits(run: Path, tmp_path: Path) -> None:
    """With images one by one: how many a batch holds may change a convolution's last bits."""
    options = ExportOptions(run=str(run), output=str(tmp_path / "two"), num_workers=0, batch_size=1)
    run_launch(export, options, folder=tmp_path)
    single = export_run(run, tmp_path / "one", batch_size=1)
    one, two = (load_file(next(folder.glob("*.safetensors"))) for folder in (single, tmp_path / "two"))
    assert all(torch.equal(one[name], two[name]) for name in one if name.startswith("bn."))


def test_the_pipeline_reads_an_export(run: Path, exported: Path, tmp_path: Path) -> None:
    """Its encoder normalises as `encode_images`, its output is the model's own reconstruction; also from a folder."""
    vae = AutoencoderKLFlux2.from_pretrained(exported)
    tiny_flux2_pipeline(AutoencoderKLFlux2.from_pretrained(exported)).save_pretrained(tmp_path / "pipeline")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", vae=vae, text_encoder=None, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    image = photos_of(run)[:1]
    latents = pipeline._encode_vae_image(image, generator=None)
    ours = encode_images(load_autoencoder(exported), image)
    torch.testing.assert_close(ours, latents, rtol=1e-5, atol=1e-5)
    assert ours.shape == (1, 12, 4, 4)
    with torch.no_grad():
        expected = (vae.decode(vae.encode(image).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1)
    found = pipeline(
        prompt_embeds=torch.zeros(1, 2, 8), latents=latents, height=SIDE, width=SIDE, num_inference_steps=2,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    (picture,) = decode_latents(load_autoencoder(exported), latents)
    torch.testing.assert_close(to_tensor(picture) / 2 + 0.5, expected[0], rtol=0, atol=1.1 / 255)
    wrong = pipeline(
        prompt_embeds=torch.zeros(1, 2, 8), latents=latents * 1.2 + 0.2, height=SIDE, width=SIDE,
        num_inference_steps=2, output_type="pt",
    ).images  # fmt: skip
    assert (wrong - expected).abs().max() > 1e-3


def test_a_new_decoder_keeps_the_statistics_that_diffusion_models_know(exported: Path, tmp_path: Path) -> None:
    known = shutil.copytree(exported, tmp_path / "known")
    weights = known / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["bn.running_mean"] += 3
    save_file(state, weights, metadata={"format": "pt"})
    tuned = export_run(train_run(tmp_path, ModelConfig(pretrained=str(known), decoder_only=True)), tmp_path / "tuned")
    found = load_file(tuned / "diffusion_pytorch_model.safetensors")
    changed = {name for name in state if not torch.equal(found[name], state[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"format": "ldm", "output": "vae.safetensors"},
            "format: the LDM layout is for AutoencoderKL and VQModel; for AutoencoderKLFlux2",
        ),
        ({"shift": True}, "shift: latents of AutoencoderKLFlux2 aren't normalised so"),
    ],
)
def test_what_the_class_does_not_hold_is_refused_before_measuring(
    options: dict[str, object], told: str, run: Path, tmp_path: Path
) -> None:
    output = tmp_path / str(options.pop("output", "vae"))
    with pytest.raises(ValueError, match=told):
        export_run(run, output, **options)
    assert not output.exists()
