"""A small model for a frozen autoencoder's latents, and a new decoder for a pretrained encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.model import ModelConfig
from ldm_vae.config.run import Config
from ldm_vae.encoding.encode import encode
from ldm_vae.exporting.export import export
from ldm_vae.images.training import TrainingSamples
from ldm_vae.images.transforms import to_tensor
from ldm_vae.models.build import build_autoencoder
from ldm_vae.training.inputs import open_data, training_images
from ldm_vae.training.loop import train
from ldm_vae.training.processes import Processes
from ldm_vae.training.state import TrainingState, build_state
from tests.encodings import options
from tests.tiny import random_images, tiny_autoencoder, tiny_config, tiny_family
from tests.training.runs import assert_bit_equal, largest_difference, metrics

STUDENT = {"family": "tiny", "block_out_channels": [8, 8], "layers_per_block": 1}
SCALING = {"scaling_factor": 0.7, "shift_factor": 0.2}
SIDE = 16


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    model = tiny_autoencoder(latent_channels=3, **SCALING)
    model.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def fields(teacher: Path, **model: Any) -> dict[str, Any]:
    return {"model": STUDENT | {"teacher": str(teacher), "teach_encoder": True, "latent_channels": 3} | model}


@pytest.mark.parametrize("family", ["tiny", "kl", "flux2"])
def test_it_decodes_and_imitates_the_teachers_normalised_latents(teacher: Path, family: str) -> None:
    torch.manual_seed(0)
    state = build_state(tiny_config(**fields(teacher, family=family)), accelerator=Accelerator(cpu=True))
    images, noise = random_images(), torch.randn(2, 3, 16, 16)
    posterior = AutoencoderKL.from_pretrained(teacher).encode(images).latent_dist
    z, mean = ((value - 0.2) * 0.7 for value in (posterior.mean + posterior.std * noise, posterior.mean))
    output = state.trainable(images, noise)
    student = state.autoencoder
    torch.testing.assert_close(output.reconstruction, student.decode(z).sample)
    if family == "tiny":
        distance = (student.encode(images).latents - mean).square().mean()
    else:
        own = student.encode(images).latent_dist
        distance = (own.mean - mean).square().mean() + (own.std - 0.7 * posterior.std).square().mean()
    torch.testing.assert_close(output.latent.losses["imitation"], distance)
    (output.reconstruction.square().mean() + output.latent.losses["imitation"]).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert not {id(p) for p in state.trainable.parameters()} & {
        id(p) for p in state.trainable.teacher.family.model.parameters()
    }
    assert "kl" not in state.objective.names


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


def test_a_flux2_student_is_exported_with_statistics_that_change_nothing(
    teacher: Path, pictures: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        output_dir=tmp_path / "run",
        data={"train": str(pictures)},
        train={"max_train_steps": 2},
        **fields(teacher, family="flux2", decoder_block_out_channels=[4, 4]),
    )
    train(config)
    export(ExportOptions(run=str(tmp_path / "run"), output=str(tmp_path / "vae"), num_workers=0))
    exported = AutoencoderKLFlux2.from_pretrained(tmp_path / "vae")
    assert exported.decoder.conv_out.in_channels == 4
    latents = torch.randn(1, 12, 4, 4)
    normalised = (latents - exported.bn.running_mean.view(1, -1, 1, 1)) / torch.sqrt(
        exported.bn.running_var.view(1, -1, 1, 1) + exported.config.batch_norm_eps
    )
    torch.testing.assert_close(normalised, latents, rtol=1e-6, atol=1e-6)


def samples_of(config: Config, state: TrainingState) -> TrainingSamples:
    processes = Processes(accelerator=Accelerator(cpu=True), hosts=None)
    samples = training_images(open_data(config).training, config, state, early_stages=[], processes=processes)
    assert isinstance(samples, TrainingSamples)
    return samples


@pytest.fixture
def latents(teacher: Path, pictures: Path, tmp_path: Path) -> Path:
    encode(options(str(teacher), str(pictures), tmp_path / "latents", resolution=SIDE, flip=True))
    return tmp_path / "latents"


def stored_config(latents: Path, pictures: Path, *, run: Path | str = "unused", **train: Any) -> Config:
    return tiny_config(
        output_dir=run,
        data={"train": str(pictures), "resolution": SIDE, "crop": "center"},
        train={"adam_epsilon": 1e-4, "validation_steps": 2, "checkpointing_steps": 2} | train,
        loss={"disc_num_layers": 1, "reconstruction": "l2"},
        **fields(latents),
    )


def test_stored_latents_are_those_that_the_teacher_gives_of_the_same_images(
    teacher: Path, latents: Path, pictures: Path
) -> None:
    config = stored_config(latents, pictures)
    state = build_state(config, accelerator=Accelerator(cpu=True))
    samples = samples_of(config, state)
    vae = AutoencoderKL.from_pretrained(teacher)
    taken = [samples[k] for k in range(11)]
    for sample in taken:
        posterior = vae.encode(sample.image[None]).latent_dist
        torch.testing.assert_close(sample.stored["mean"], posterior.mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sample.stored["std"], posterior.std[0], rtol=1e-4, atol=1e-5)
    flipped = [samples.augmentation.flips(k) for k in range(11)]
    assert {True, False} == set(flipped)  # so both of a picture's latents were compared

    images, noise = (torch.stack([getattr(one, name) for one in taken]) for name in ("image", "noise"))
    stored = {name: torch.stack([one.stored[name] for one in taken]) for name in ("mean", "std")}
    student = state.autoencoder
    output = state.trainable(images, noise, {}, stored)
    z = (stored["mean"] + stored["std"] * noise - 0.2) * 0.7
    torch.testing.assert_close(output.reconstruction, student.decode(z).sample)
    distance = (student.encode(images).latents - (stored["mean"] - 0.2) * 0.7).square().mean()
    torch.testing.assert_close(output.latent.losses["imitation"], distance)


def test_neither_cuts_nor_interruptions_show_with_stored_latents(
    latents: Path, pictures: Path, tmp_path: Path
) -> None:
    def run(name: str, **changes: Any) -> Path:
        train(stored_config(latents, pictures, run=tmp_path / name, **changes))
        return tmp_path / name

    whole = run("whole")
    assert largest_difference(run("cut", micro_batch_size=1), whole) < 1e-5
    run("resumed", max_train_steps=4)
    assert_bit_equal(run("resumed", resume_from_checkpoint="latest"), whole)
    run("bf16", mixed_precision="bf16", max_train_steps=2)


def test_an_image_without_latents_is_replaced_and_told(teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(folder / f"{number}.png")
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(b"no picture")
    encode(options(str(teacher), str(folder), tmp_path / "latents", resolution=SIDE, flip=True))
    (folder / "2.png").write_bytes(content)
    config = stored_config(tmp_path / "latents", folder)
    state = build_state(config, accelerator=Accelerator(cpu=True))
    samples = samples_of(config, state)
    taken = [samples[k] for k in range(4)]
    (skipped,) = [skipped for one in taken for skipped in one.skipped]
    assert skipped.name == "2.png"
    assert skipped.reason.endswith("latents holds no latents of it")
    for one in taken:
        red = round((one.image[0].mean().item() + 1) * 127.5)
        picture = to_tensor(Image.new("RGB", (SIDE, SIDE), (red, 0, 0)))[None]
        mean = AutoencoderKL.from_pretrained(teacher).encode(picture).latent_dist.mean[0]
        torch.testing.assert_close(one.stored["mean"], mean, rtol=1e-4, atol=1e-5)


def test_latents_that_do_not_fit_the_data_are_refused(teacher: Path, latents: Path, pictures: Path) -> None:
    def open_samples(data: dict[str, Any], folder: Path = latents, **model: Any) -> None:
        config = tiny_config(
            data={"train": str(pictures), "resolution": SIDE, "crop": "center"} | data, **fields(folder, **model)
        )
        state = build_state(config, accelerator=Accelerator(cpu=True))
        samples_of(config, state)

    with pytest.raises(ValueError, match=r"model.teacher .* holds latents of 16 pixels alone; set data.resolution"):
        open_samples({"resolution": 32})
    with pytest.raises(ValueError, match=r"of 16 pixels alone; .* leave data.early_resolutions out"):
        open_samples({"early_resolutions": [8], "early_fractions": [0.5]})
    with pytest.raises(ValueError, match=r"holds latents of centre crops; set data.crop to center"):
        open_samples({"crop": "random"})
    with pytest.raises(ValueError, match=r"holds latents of other numbers; set data.value_range to \[\]"):
        open_samples({"value_range": [0, 200]})
    with pytest.raises(ValueError, match=r"holds latents of images by number, which data.streaming and sounds"):
        open_samples({"streaming": True})
    with pytest.raises(ValueError, match=r"model.teacher .* differ in their latent channels: 3 and 4"):
        open_samples({}, latent_channels=4)
    other = pictures.parent / "other-pictures"
    other.mkdir(exist_ok=True)
    Image.new("RGB", (20, 20)).save(other / "a.png")
    with pytest.raises(ValueError, match=r"data.train .*other-pictures isn't what .* was encoded from"):
        open_samples({"train": str(other)})
    unflipped = latents.parent / "unflipped"
    encode(options(str(teacher), str(pictures), unflipped, resolution=SIDE, mode="mean"))
    with pytest.raises(ValueError, match=r"holds no mirrored latents; encode with --flip, or set data.flip to false"):
        open_samples({}, unflipped)
    with pytest.raises(ValueError, match=r"gives latents without a posterior, which the family kl has"):
        open_samples({"flip": False}, unflipped, family="kl")
    open_samples({"flip": False}, unflipped)


def test_what_does_not_fit_is_refused(teacher: Path) -> None:
    def build(loss: dict[str, Any] | None = None, **model: Any) -> None:
        build_state(tiny_config(**fields(teacher, **model), loss=loss), accelerator=Accelerator(cpu=True))

    with pytest.raises(ValueError, match=r"model.teacher .* differ in their latent channels: 3 and 4"):
        build(latent_channels=4)
    with pytest.raises(ValueError, match=r"model.teacher .* differ in their spatial factor: 2 and 4"):
        build(block_out_channels=[8, 8, 8])
    with pytest.raises(ValueError, match=r"model.teacher is for families whose .* model.family is vq"):
        build(family="vq")
    with pytest.raises(ValueError, match=r"model.decoder_only keeps the encoder as it is, and model.teach_encoder tr"):
        build(decoder_only=True)
    with pytest.raises(ValueError, match=r"model.decoder_only keeps the encoder of model.pretrained, which isn't na"):
        build(decoder_only=True, teach_encoder=False)
    with pytest.raises(ValueError, match=r"model.teach_encoder trains an encoder .* of model.teacher, which isn't na"):
        ModelConfig(teach_encoder=True)
    with pytest.raises(ValueError, match=r"loss.imitation_weight is 2.0, but the encoder isn't trained; set model.te"):
        build({"imitation_weight": 2.0}, teach_encoder=False)
    with pytest.raises(ValueError, match=r"loss.consistency_weight trains the encoder, which model.teacher leaves as"):
        build({"consistency_weight": 0.1}, teach_encoder=False)
    with pytest.raises(ValueError, match=r"model.posterior is fixed, but model.teacher teaches a posterior"):
        build(family="kl", posterior="fixed")
    with pytest.raises(ValueError, match=r"loss asks for a rate .*, but a teacher's latents keep theirs"):
        build({"free_bits": 0.1}, family="kl")
    with pytest.raises(ValueError, match=r"loss.spectrum_weight shapes the latents, which are those of model.teacher"):
        build({"spectrum_weight": 0.1})


def test_the_decoder_of_a_pretrained_student_is_taught_alone(teacher: Path, tmp_path: Path) -> None:
    tiny_family(**STUDENT, latent_channels=3).model.save_pretrained(tmp_path / "student")
    config = tiny_config(
        model={"pretrained": str(tmp_path / "student"), "teacher": str(teacher), "decoder_only": True}
    )
    state = build_state(config, accelerator=Accelerator(cpu=True))
    images, noise = random_images(), torch.zeros(2, 3, 16, 16)
    output = state.trainable(images, noise)
    mean = AutoencoderKL.from_pretrained(teacher).encode(images).latent_dist.mean
    torch.testing.assert_close(output.reconstruction, state.autoencoder.decode((mean - 0.2) * 0.7).sample)
    assert "imitation" not in state.objective.names
    assert not any(parameter.requires_grad for parameter in state.autoencoder.encoder.parameters())


def test_a_pretrained_encoder_gets_a_new_decoder(tmp_path: Path) -> None:
    wide = tiny_family(family="flux2", latent_channels=3)
    wide.set_statistics(mean=torch.arange(12).float(), variance=torch.ones(12) * 2)
    wide.model.save_pretrained(tmp_path)
    narrow = build_autoencoder(  # whose groups are the model's, not the published 32
        ModelConfig(pretrained=str(tmp_path), decoder_block_out_channels=[4, 8], decoder_only=True)
    )
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
