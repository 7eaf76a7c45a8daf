"""`ldm-vae sounds`: files to listen to, at the original's level, length and place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae.audio import MEL_RANGE, read_mels, to_sound
from ldm_vae.audio.mels import levelled, mels_of
from ldm_vae.cli import main
from tests.audio.sounds import chirp, write_sounds
from tests.audio.test_vocoding import tiny_vocoder
from tests.tiny import tiny_autoencoder


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    tiny_autoencoder(in_channels=1, out_channels=1).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_each_sound_is_written_beside_its_original(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_sounds(tmp_path / "data", count=2, seconds=0.505, rate=22_050)
    (data / "broken.wav").write_text("no sound")
    soundfile.write(data / "long.wav", chirp(3.0), 16_000)
    tiny_vocoder().save_pretrained(tmp_path / "vocoder")
    words = ["sounds", "--vae", str(vae), "--data", str(data), "--seconds", "1"]
    main([*words, "--output", str(tmp_path / "plain")])
    main([*words, "--output", str(tmp_path / "vocoded"), "--vocoder", str(tmp_path / "vocoder")])
    told = capsys.readouterr().out
    assert "3 sounds, decoded and original; PSNR of the mels" in told
    assert "1 sound skipped; the first: broken.wav" in told

    model = AutoencoderKL.from_pretrained(vae).eval()
    for folder, vocoder in (("plain", None), ("vocoded", tiny_vocoder())):
        lines = [json.loads(line) for line in (tmp_path / folder / "sounds.jsonl").read_text().splitlines()]
        assert [line["source"] for line in lines] == ["0.wav", "1.wav", "long.wav"]
        original, rate = soundfile.read(tmp_path / folder / lines[0]["original"], dtype="float32")
        decoded, _ = soundfile.read(tmp_path / folder / lines[0]["decoded"], dtype="float32")
        assert (rate, len(original)) == (16_000, 8080)
        assert len(decoded) == len(original)
        assert np.abs(original).max() == pytest.approx(0.5, abs=1e-3)
        mels = mels_of(levelled(torch.from_numpy(original)), frames=52)
        with torch.no_grad():
            made = model(mels[None]).sample[0]
        expected = to_sound(made, vocoder=vocoder)[:8080].numpy()
        # the original on the disk is rounded to 16 bits, which Griffin-Lim's phases are sensitive to
        assert np.corrcoef(decoded, expected)[0, 1] > (0.9 if vocoder is None else 0.99)
    long, _ = soundfile.read(tmp_path / "plain" / lines[2]["original"], dtype="float32")
    middle = levelled(torch.from_numpy(chirp(3.0)[16_000:32_000])).numpy()
    np.testing.assert_allclose(long, middle, atol=1e-3)


def test_evaluate_measures_the_mels_of_sounds(tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_sounds(tmp_path / "data", count=3, seconds=0.5)
    (data / "broken.wav").write_text("no sound")
    tiny_autoencoder(in_channels=1, out_channels=1, seed=1).save_pretrained(tmp_path / "other")
    words = ["evaluate", "--vae", str(vae), "--vae", str(tmp_path / "other"), "--data", str(data),
             "--output", str(tmp_path / "evaluation"), "--perceptual", "none", "--num_workers", "0"]  # fmt: skip
    main([*words, "--mel_frames", "32"])
    told = capsys.readouterr().out
    assert "| frames | sounds | psnr (dB) |" in told
    assert "1 sound skipped, listed in" in told
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert [skipped["name"] for skipped in metrics["skipped"]] == ["broken.wav"]
    mels = torch.stack([read_mels(data / f"{i}.wav", frames=32) for i in range(3)])
    low, high = MEL_RANGE
    for folder, found in zip((vae, tmp_path / "other"), metrics["evaluations"], strict=True):
        with torch.no_grad():
            made = AutoencoderKL.from_pretrained(folder).eval()(mels).sample
        levels = [((values.clamp(low, high) - low) / (high - low) * 255).round() for values in (mels, made)]
        error = (levels[0] - levels[1]).square().mean(dim=(1, 2, 3))
        expected = (10 * torch.log10(255**2 / error)).mean().item()
        assert found["metrics"]["psnr"]["value"] == pytest.approx(expected, abs=1e-3)
        assert not any(name.startswith(("rkid", "rfid")) for name in found["metrics"])
        assert "mels of the middle 32 frames" in found["protocol"]["pictures"]
    kept = sorted((tmp_path / "evaluation/pictures").glob("*-original.webp"))
    with Image.open(kept[0]) as drawn:
        shown = torch.from_numpy(np.asarray(drawn.convert("L"), dtype=np.float32))
    grey = ((mels[0, 0].clamp(low, high) - low) / (high - low) * 255).round()
    torch.testing.assert_close(shown, grey, rtol=0, atol=1)
    assert "Mels of sounds, 32 frames" in (tmp_path / "evaluation/report.html").read_text()
    with pytest.raises(SystemExit):
        main([*words, "--overwrite", "--mel_frames", "32", "--resolution", "32"])
    assert "--resolution is for images, but --mel_frames says" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--overwrite", "--mel_frames", "33"])
    assert "--mel_frames is 33, which the model's factor 2 does not divide" in capsys.readouterr().err


def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_sounds(tmp_path / "data", count=1, seconds=0.1)
    (data / "broken.wav").write_text("no sound")
    tiny_autoencoder().save_pretrained(tmp_path / "rgb")
    output = ["--output", str(tmp_path / "out")]
    for words, message in (
        (["--vae", str(tmp_path / "rgb"), "--data", str(data)], "is for images of 3 channels and factor 2; mels are"),
        (["--vae", str(vae), "--data", str(data), "--strict"], "the sound broken.wav can't be read: "),
        (["--vae", str(vae), "--data", str(data / "broken.wav")], "none of its sounds can be read; the first: broken"),
        (["--vae", str(vae), "--data", str(tmp_path / "rgb")], "names no sound; give a folder or files of sound"),
    ):
        with pytest.raises(SystemExit):
            main(["sounds", *words, *output])
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
