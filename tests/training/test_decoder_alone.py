"""A decoder that learns a teacher's latents alone: its encoder is neither trained nor run, nor taken for one."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

from ldm_vae import encode_images, load_autoencoder
from ldm_vae.config.commands.convert import ConvertOptions
from ldm_vae.config.commands.decode import DecodeOptions
from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.model import ModelConfig
from ldm_vae.encoding.decode import decode
from ldm_vae.encoding.encode import encode
from ldm_vae.evaluation.evaluate import evaluate
from ldm_vae.exporting.convert import convert
from ldm_vae.exporting.pipelines import pipeline_check
from ldm_vae.images.transforms import to_tensor
from ldm_vae.models.build import build_autoencoder
from ldm_vae.models.families.wrapped import ENCODER_IS_TRAINED
from ldm_vae.system.pixels import to_pixels
from ldm_vae.training.loop import train
from ldm_vae.training.state import build_state
from tests.encodings import options
from tests.exporting.runs import export_run
from tests.pictures import save_pictures
from tests.tiny import random_images, tiny_autoencoder, tiny_config
from tests.training.runs import metrics, weights

SHIFT, SCALE, SIDE = 0.2, 0.7, 16
STUDENT = {"family": "tiny", "block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a teacher, its latents of them, and a decoder taught alone, trained and exported."""
    folder = tmp_path_factory.mktemp("distilled")
    save_pictures(folder / "photos", count=5, size=(SIDE, SIDE))
    teacher = tiny_autoencoder(latent_channels=3, scaling_factor=SCALE, shift_factor=SHIFT)
    teacher.save_pretrained(folder / "teacher")
    encode(options(str(folder / "teacher"), str(folder / "photos"), folder / "latents", resolution=SIDE))
    train(config(folder))
    train(config(folder, run="with-encoder", teach_encoder=True))
    export_run(folder / "run", folder / "export")
    return folder


def config(folder: Path, *, run: str = "run", data: dict[str, Any] | None = None, **model: Any) -> Any:
    photos = str(folder / "photos")
    return tiny_config(
        output_dir=folder / run,
        model=STUDENT | {"teacher": str(folder / "teacher")} | model,
        data={"train": photos, "validation": photos, "resolution": SIDE, "crop": "center", "flip": False}
        | (data or {}),
        loss={"disc_num_layers": 1},
        train={
            "max_train_steps": 3,
            "validation_steps": 3,
            "ema_decay": 0.0,
            "max_grad_norm": 0.0,
            "adam_epsilon": 1e-4,
        },
    )


def normalised_latents(folder: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        mean = AutoencoderKL.from_pretrained(folder / "teacher").encode(images).latent_dist.mean
    return (mean - SHIFT) * SCALE


def photos(folder: Path) -> torch.Tensor:
    return torch.stack([to_tensor(Image.open(path)) for path in sorted((folder / "photos").glob("*.png"))])


@pytest.mark.parametrize("family", ["tiny", "kl", "flux2"])
def test_the_encoder_is_run_on_request_alone(folder: Path, family: str) -> None:
    state = build_state(config(folder, family=family), accelerator=Accelerator(cpu=True))
    ran: list[object] = []
    state.autoencoder.encoder.register_forward_hook(lambda *_: ran.append(True))
    images = random_images(side=SIDE)
    output = state.trainable(images, torch.zeros(2, 3, SIDE // 2, SIDE // 2))
    expected = state.autoencoder.decode(normalised_latents(folder, images)).sample
    torch.testing.assert_close(output.reconstruction, expected)
    output.reconstruction.square().mean().backward()
    assert not ran
    assert "imitation" not in state.objective.names
    trained = {name.partition(".")[0] for name, p in state.autoencoder.named_parameters() if p.grad is not None}
    assert trained == {"decoder", *({"post_quant_conv"} if family != "tiny" else ())}
    assert not any(p.requires_grad for module in state.family.encoder_side for p in module.parameters())


def test_the_decoder_learns_the_same_whether_the_encoder_learns_or_not(folder: Path) -> None:
    alone, beside = weights(folder / "run"), weights(folder / "with-encoder")
    for name in alone:
        assert torch.equal(alone[name], beside[name]) != name.startswith("autoencoder/encoder."), name


def test_validation_decodes_the_teachers_latents(folder: Path) -> None:
    images = photos(folder)
    student = AutoencoderTiny.from_pretrained(folder / "export")
    with torch.no_grad():
        decoded = student.decode(normalised_latents(folder, images)).sample
    errors = (to_pixels(images).double() - to_pixels(decoded).double()).square().mean(dim=(1, 2, 3))
    expected = (10 * torch.log10(255**2 / errors)).mean().item()
    (measured,) = [line for line in metrics(folder / "run") if "validation/psnr" in line]
    assert measured["validation/psnr"] == pytest.approx(expected, rel=1e-4)
    exported = json.loads((folder / "export" / "measurements.json").read_text())
    assert exported["reconstruction"]["metrics"]["psnr"]["value"] == pytest.approx(expected, rel=1e-4)


def test_the_export_says_that_it_only_decodes_and_its_snippet_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = json.loads((folder / "export" / "config.json").read_text())
    assert (stated[ENCODER_IS_TRAINED], stated["scaling_factor"], stated["shift_factor"]) == (False, 1.0, 0.0)
    card = (folder / "export" / "README.md").read_text()
    assert "**It only decodes**, the normalised latents of `teacher`" in card
    assert "(encoder)" not in card
    assert "| encoder |" not in card
    assert "relative latent error" not in card
    assert json.loads((folder / "export" / "measurements.json").read_text())["strips"]["latent_error"] is None
    (snippet,) = re.findall(r"```python\n(import.*?)```", card, flags=re.DOTALL)
    assert ".encode(" not in snippet
    (tmp_path / "export").symlink_to(folder / "export")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    logger = logging.getLogger("diffusers.configuration_utils")
    monkeypatch.setattr(logger, "filters", [lambda record: told.append(record.getMessage()) or True])
    exec(compile(snippet, "README.md", "exec"), {})
    assert Image.open("picture.png").size == (64, 64)
    assert ENCODER_IS_TRAINED in told[0]  # diffusers warns of it, so that its users know too


def test_what_encodes_refuses_it_in_a_line(folder: Path, tmp_path: Path) -> None:
    export, data, out = str(folder / "export"), str(folder / "photos"), str(tmp_path / "out")
    refusal = r"vae: .*export only decodes: its encoder isn't trained, as its config.json says"
    with pytest.raises(ValueError, match=refusal):
        encode(options(export, data, tmp_path / "out"))
    with pytest.raises(ValueError, match=refusal):
        evaluate(EvaluateOptions(vae=[export], data=data, output=out))
    with pytest.raises(ValueError, match="this AutoencoderTiny only decodes"):
        encode_images(load_autoencoder(export), Image.open(folder / "photos" / "0000.png"))
    with pytest.raises(ValueError, match=r"model.teacher: .* only decodes"):
        build_state(config(folder, teacher=export), accelerator=Accelerator(cpu=True))
    with pytest.raises(ValueError, match=r"train.panel_steps measures latents that are trained"):
        train(replace(config(folder, run="panel"), train=replace(config(folder).train, panel_steps=3)))


def test_decode_gives_it_the_stored_latents_normalised(folder: Path, tmp_path: Path) -> None:
    arguments = {"vae": str(folder / "export"), "latents": str(folder / "latents"), "output": str(tmp_path)}
    with pytest.raises(ValueError, match=r"is not the autoencoder that .* other_vae decodes all the same"):
        decode(DecodeOptions(**arguments))
    decode(DecodeOptions(**arguments, other_vae=True))
    with torch.no_grad():
        student = AutoencoderTiny.from_pretrained(folder / "export")
        expected = to_pixels(student.decode(normalised_latents(folder, photos(folder))).sample)
    for number, picture in enumerate(expected):
        found = np.asarray(Image.open(tmp_path / f"{number:04d}.png")).astype(int)
        assert np.abs(found - picture.permute(1, 2, 0).numpy()).max() <= 1  # rounded once


def test_a_student_of_stored_latents_has_no_validation_and_is_measured_by_the_autoencoder(
    folder: Path, tmp_path: Path
) -> None:
    latents = str(folder / "latents")
    with pytest.raises(ValueError, match=r"data.validation: the encoder isn't trained, and model.teacher .* alone;"):
        train(config(folder, run="refused", teacher=latents))
    train(config(folder, run="stored", teacher=latents, data={"validation": None}))
    for name, weight in weights(folder / "run").items():  # whose teacher ran
        torch.testing.assert_close(weights(folder / "stored")[name], weight, rtol=1e-3, atol=1e-4)
    assert (folder / "stored" / "samples" / "step-000003.png").exists()
    with pytest.raises(ValueError, match=r"teacher is missing: the run learnt from the latents in"):
        export_run(folder / "stored", tmp_path / "vae")
    export_run(folder / "stored", tmp_path / "vae", teacher=str(folder / "teacher"))
    assert "latents of `teacher`" in (tmp_path / "vae" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"teacher is .*, but the run's own encoder is trained"):
        export_run(folder / "with-encoder", tmp_path / "other", teacher=str(folder / "teacher"))


def test_its_encoder_can_be_taught_later_and_then_is_one(folder: Path) -> None:
    export = str(folder / "export")
    with pytest.raises(ValueError, match=r"holds a decoder alone, .* name the model.teacher of its latents, or set"):
        build_autoencoder(ModelConfig(pretrained=export, decoder_only=True))
    teacher = str(folder / "teacher")
    again = build_autoencoder(ModelConfig(pretrained=export, teacher=teacher))
    assert not again.has_encoder
    taught = build_autoencoder(ModelConfig(pretrained=export, teacher=teacher, teach_encoder=True))
    assert taught.has_encoder
    assert ENCODER_IS_TRAINED not in taught.model.config


def test_a_single_file_of_it_and_a_pipeline_that_encodes_are_refused(folder: Path, tmp_path: Path) -> None:
    """Who reads such a file doesn't see the mark."""
    train(config(folder, run="kl", family="kl"))
    export_run(folder / "kl", folder / "kl-export")
    with pytest.raises(
        ValueError, match=r"format: .* trained a decoder alone: its encoder isn't trained, which a single"
    ):
        export_run(folder / "kl", tmp_path / "vae.safetensors", format="ldm")
    with pytest.raises(ValueError, match=r"kl-export: its encoder isn't trained, which a single LDM file can't say"):
        convert(ConvertOptions(input=str(folder / "kl-export"), output=str(tmp_path / "vae.safetensors")))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"in_channels": 3}')
    for name, fits in (("StableDiffusionPipeline", True), ("StableDiffusionImg2ImgPipeline", False)):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, "unet": []}))
        check = pipeline_check(folder / "kl-export", tmp_path)
        assert [misfit.field for misfit in check.misfits] == ([] if fits else [ENCODER_IS_TRAINED])
