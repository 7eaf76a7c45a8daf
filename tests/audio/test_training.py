"""Runs on sounds: the same promises as for images, and an export that holds mels as AudioLDM has them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae.audio import MEL_RANGE, read_mels
from ldm_vae.audio.collection import open_sounds
from ldm_vae.audio.datasets import EvaluationSounds, TrainingSounds
from ldm_vae.config.parsing import parse_command
from ldm_vae.config.run import Config
from ldm_vae.exporting.export import ExportSummary
from ldm_vae.images.batches import training_batches
from ldm_vae.images.training import Augmentation
from ldm_vae.training.loop import train
from tests.audio.sounds import FRAMES, sound_config, write_sounds
from tests.tiny import tiny_config
from tests.training.runs import assert_bit_equal, largest_difference, metrics


def test_a_run_measures_and_draws_mels(run: Path) -> None:
    lines = metrics(run)
    assert {"rec", "perceptual", "kl", "g", "d", "lam"} <= set().union(*lines)
    last = next(line for line in reversed(lines) if "validation/psnr" in line)
    assert last["validation/num_images"] == 7
    with Image.open(run / "samples/step-000006.png") as drawn:
        assert drawn.size == (7 * 64, 2 * FRAMES)
        original = torch.tensor(drawn.convert("L").getdata(), dtype=torch.float32).view(2 * FRAMES, 7 * 64)[:FRAMES]
    assert 60 < original.mean() < 220  # by their own range; as values in [-1, 1] nearly all would be black


def test_neither_the_cut_of_a_batch_nor_an_interruption_shows(run: Path, sounds: Path, tmp_path: Path) -> None:
    train(sound_config(tmp_path / "cut", sounds, micro_batch_size=1))
    assert largest_difference(tmp_path / "cut", run) < 1e-5
    train(sound_config(tmp_path / "resumed", sounds, max_train_steps=4))
    train(sound_config(tmp_path / "resumed", sounds, resume_from_checkpoint="latest"))
    assert_bit_equal(tmp_path / "resumed", run)


def test_bf16_and_checkpointing_train_too(sounds: Path, tmp_path: Path) -> None:
    train(sound_config(tmp_path, sounds, mixed_precision="bf16", gradient_checkpointing="blocks", max_train_steps=2))
    assert all(line.get("rec", 1) > 0 for line in metrics(tmp_path))


def test_the_export_loads_and_its_card_makes_a_sound(
    exported: ExportSummary, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoencoderKL.from_pretrained(exported.output).eval()
    mels = torch.stack([read_mels(path, frames=FRAMES) for path in sorted(sounds.glob("*.wav"))])
    with torch.no_grad():
        posterior = model.encode(mels).latent_dist
        reconstruction = model.decode(posterior.mean).sample
    variance = posterior.mean.var(unbiased=False) + posterior.std.square().mean()
    assert model.config.scaling_factor == pytest.approx(variance.item() ** -0.5, rel=1e-3)
    low, high = MEL_RANGE
    levels = [((values.clamp(low, high) - low) / (high - low) * 255).round() for values in (mels, reconstruction)]
    error = (levels[0] - levels[1]).square().mean(dim=(1, 2, 3))
    expected = (10 * torch.log10(255**2 / error)).mean()
    assert exported.metrics["psnr"].value == pytest.approx(expected.item(), abs=1e-3)

    card = (exported.output / "README.md").read_text()
    assert f"mels of the middle {FRAMES} frames" in card
    assert f"cropped to 64x{FRAMES}" in card
    shutil.copy(sounds / "0.wav", tmp_path / "sound.wav")
    shutil.copytree(exported.output, tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})
    assert soundfile.info(tmp_path / "reconstruction.wav").frames == 160 * FRAMES


def test_a_sample_depends_on_its_number_alone_and_what_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    folder = write_sounds(tmp_path, count=4, seconds=0.6)
    (folder / "broken.wav").write_text("no sound")

    def dataset(seed: int = 0, crop: str = "random") -> TrainingSounds:
        augmentation = Augmentation(
            seed=seed, channels=1, resolution=FRAMES, crop=crop, latent_channels=3, spatial_factor=4
        )
        return TrainingSounds(open_sounds(str(folder)), augmentation, frames=FRAMES)

    batches = training_batches(dataset(), start_step=1, batch_size=4, micro_batch_size=2, num_workers=1)
    batch, samples = next(batches), dataset()
    assert batch.images.shape == (2, 1, FRAMES, 64)
    assert batch.noise.shape == (2, 3, FRAMES // 4, 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(batch.images, torch.stack([samples[4].image, samples[5].image]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    skipped = [skipped for k in range(5) for skipped in samples[k].skipped]
    assert [one.name for one in skipped] == ["broken.wav"]
    assert not torch.equal(samples[0].image, dataset(seed=1)[0].image)
    middle = EvaluationSounds(open_sounds(str(folder)), frames=FRAMES)
    centred = dataset(crop="center")
    in_the_middle = [middle[index].image for index in range(4)]
    assert all(any(torch.equal(centred[k].image, image) for image in in_the_middle) for k in range(3))
    assert middle[4].image is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": {"flip": True}}, r"data.flip is for images, but data.mel_frames says .* set it to false"),
        ({"data": {"streaming": True}}, r"data.streaming is for images"),
        ({"data": {"crop": "random_resized"}}, r"data.crop is random_resized, but .* keep their pitch"),
        ({"data": {"mel_frames": 33}}, r"data.mel_frames is 33, which the model's factor 2 does not divide"),
        ({"model": {"in_channels": 3}}, r"set model.in_channels to 1, which is 3"),
        ({"loss": {"eq_probability": 0.5}}, r"loss.eq_probability is for square images"),
    ],
)
def test_what_is_not_for_sounds_is_refused(fields: dict[str, Any], message: str) -> None:
    given = {"model": {"in_channels": 1}, "data": {"mel_frames": 32, "flip": False}}
    with pytest.raises(ValueError, match=message):
        tiny_config(**{name: given.get(name, {}) | fields.get(name, {}) for name in ("model", "data", "loss")})


def test_the_recipe_is_audioldms(tmp_path: Path) -> None:
    config = parse_command(Config, ["--config", "audioldm_f4"], prog="train").options
    assert config.data.sizes == [(64, 1024)]
    assert config.loss.kl_weight * 1024 * 64 == pytest.approx(1000 * 1024 * 64 / (8 * 256 * 16))
    assert json.loads(json.dumps(config.model.block_out_channels)) == [128, 256, 512]
