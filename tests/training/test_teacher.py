"""A small model for a frozen autoencoder's latents, and a new decoder for a pretrained encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.exporting.export import export
from ldm_vae.training.loop import train
from ldm_vae.training.state import build_state
from tests.tiny import random_images, tiny_autoencoder, tiny_config, tiny_family
from tests.training.runs import metrics

STUDENT = {"family": "tiny", "block_out_channels": [8, 8], "layers_per_block": 1}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    model = tiny_autoencoder(scaling_factor=0.7, shift_factor=0.2, latent_channels=3)
    model.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def fields(teacher: Path, **model: Any) -> dict[str, Any]:
    return {"model": STUDENT | {"teacher": str(teacher), "latent_channels": 3} | model}


def test_it_decodes_and_imitates_the_teachers_normalised_latents(teacher: Path) -> None:
    torch.manual_seed(0)
    state = build_state(tiny_config(**fields(teacher)), accelerator=Accelerator(cpu=True))
    images, noise = random_images(), torch.randn(2, 3, 16, 16)
    posterior = AutoencoderKL.from_pretrained(teacher).encode(images).latent_dist
    z, mean = ((value - 0.2) * 0.7 for value in (posterior.mean + posterior.std * noise, posterior.mean))
    output = state.trainable(images, noise)
    student = state.autoencoder
    torch.testing.assert_close(output.reconstruction, student.decode(z).sample)
    distance = (student.encode(images).latents - mean).square().mean()
    torch.testing.assert_close(output.latent.losses["imitation"], distance)
    (output.reconstruction.square().mean() + output.latent.losses["imitation"]).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert not {id(p) for p in state.trainable.parameters()} & {
        id(p) for p in state.trainable.teacher.family.model.parameters()
    }


def test_a_run_brings_the_student_nearer_and_exports_it_unscaled(
    teacher: Path, pictures: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        output_dir=tmp_path / "run",
        data={"train": str(pictures)},
        train={"max_train_steps": 30, "learning_rate": 5e-3, "log_steps": 1, "checkpointing_steps": 30},
        loss={"disc_start": 20},
        **fields(teacher),
    )
    train(config)
    distances = [line["imitation"] for line in metrics(tmp_path / "run") if "imitation" in line]
    assert distances[-1] < 0.8 * distances[0]
    export(ExportOptions(run=str(tmp_path / "run"), output=str(tmp_path / "vae"), num_workers=0))
    exported = AutoencoderTiny.from_pretrained(tmp_path / "vae")
    assert (exported.config.scaling_factor, exported.config.shift_factor) == (1.0, 0.0)


def test_what_does_not_fit_is_refused(teacher: Path) -> None:
    def build(**model: Any) -> None:
        build_state(tiny_config(**fields(teacher, **model)), accelerator=Accelerator(cpu=True))

    with pytest.raises(ValueError, match=r"model.teacher .* differ in their latent channels: 3 and 4"):
        build(latent_channels=4)
    with pytest.raises(ValueError, match=r"model.teacher .* differ in their spatial factor: 2 and 4"):
        build(block_out_channels=[8, 8, 8])
    with pytest.raises(ValueError, match=r"model.teacher is for the families tiny and dc; model.family is kl"):
        build(family="kl")
    with pytest.raises(ValueError, match=r"model.decoder_only keeps the encoder as it is"):
        build(decoder_only=True)


def test_a_pretrained_encoder_gets_a_new_decoder(tmp_path: Path) -> None:
    wide = tiny_family(family="flux2", latent_channels=3)
    wide.set_statistics(mean=torch.arange(12).float(), variance=torch.ones(12) * 2)
    wide.model.save_pretrained(tmp_path)
    narrow = tiny_family(pretrained=str(tmp_path), decoder_block_out_channels=[4, 8], decoder_only=True)
    kept = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    for name, weight in narrow.model.state_dict().items():
        assert name.startswith("decoder.") or torch.equal(weight, kept[name])
    assert narrow.last_layer.in_channels == 4
    assert narrow.reconstruct(random_images()).images.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"model.decoder_block_out_channels is \[4, 6\]; .* 2 levels, .* 4 groups"):
        tiny_family(pretrained=str(tmp_path), decoder_block_out_channels=[4, 6], norm_num_groups=2)
    tiny_family().model.save_pretrained(tmp_path / "kl")
    with pytest.raises(ValueError, match=r"gives a pretrained model of the family flux2 a new decoder; .* family kl"):
        tiny_family(pretrained=str(tmp_path / "kl"), decoder_block_out_channels=[4, 8])
