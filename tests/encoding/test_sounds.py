"""Sounds to latents of their mels and back, and what of the commands isn't for sounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AutoencoderKL

from ldm_vae import LatentDataset
from ldm_vae.audio import read_mels, to_sound
from ldm_vae.cli import main
from tests.audio.sounds import write_sounds
from tests.audio.test_vocoding import tiny_vocoder
from tests.encodings import contents
from tests.tiny import tiny_autoencoder

FRAMES = 32


def test_latents_are_those_of_the_mels_and_decode_to_their_sounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_sounds(tmp_path / "data", count=5, seconds=0.6)
    (data / "broken.wav").write_text("no sound")
    tiny_autoencoder(in_channels=1, out_channels=1, latent_channels=3).save_pretrained("vae")
    encoding = ["encode", "--vae", "vae", "--data", "data", "--mel_frames", str(FRAMES), "--mixed_precision", "no",
                "--dtype", "float32", "--shard_size", "2", "--batch_size", "2"]  # fmt: skip
    main([*encoding, "--output", "latents", "--num_workers", "0"])
    told = capsys.readouterr()
    assert "5 latents of 6 sounds in 3 shards" in told.out
    assert "this process encoded 6 sounds in" in told.out
    assert "6 of 6 sound," in told.err
    assert "image" not in told.out + told.err

    model = AutoencoderKL.from_pretrained("vae").eval()
    mels = torch.stack([read_mels(data / f"{i}.wav", frames=FRAMES) for i in range(5)])
    with torch.no_grad():
        posterior = model.encode(mels).latent_dist
        made = model.decode(posterior.mean).sample
    dataset = LatentDataset("latents", normalize="none", verify=True)
    assert [dataset.row(row)["source"] for row in range(5)] == [f"{i}.wav" for i in range(5)]
    for name, expected in (("mean", posterior.mean), ("std", posterior.std)):
        stored = torch.stack([dataset.moments(row)[name] for row in range(5)])
        torch.testing.assert_close(stored, expected, rtol=1e-4, atol=1e-4)
    assert dataset.index["preprocessing"]["mel_frames"] == FRAMES
    assert "resolution" not in dataset.index["preprocessing"]

    main([*encoding, "--output", "workers", "--num_workers", "2"])
    of_workers, of_one = contents(tmp_path / "workers"), contents(tmp_path / "latents")
    shards = [name for name in of_one if name.endswith(".safetensors")]
    assert len(shards) == 3
    assert all(of_workers[name] == of_one[name] for name in shards)

    capsys.readouterr()
    main(["latents", "verify", "latents", "--deep", "--vae", "vae", "--data", "data"])
    assert "; 5 sounds encoded again agree" in capsys.readouterr().out
    soundfile.write(data / "1.wav", np.zeros(9600, dtype=np.float32) + 0.1, 16_000)
    with pytest.raises(SystemExit):
        main(["latents", "verify", "latents", "--deep", "--vae", "vae", "--data", "data"])
    assert "is not what 1.wav encodes to" in capsys.readouterr().err

    tiny_vocoder().save_pretrained(tmp_path / "vocoder")
    decoding = ["decode", "--vae", "vae", "--latents", "latents"]
    main([*decoding, "--output", "mels", "--format", "npy"])
    main([*decoding, "--output", "sounds", "--num_images", "2"])
    main([*decoding, "--output", "vocoded", "--num_images", "2", "--vocoder", "vocoder"])
    assert "2 sounds, named in pictures.jsonl" in capsys.readouterr().out
    for i in range(5):
        np.testing.assert_allclose(np.load(f"mels/{i}.npy"), made[i].permute(1, 2, 0), rtol=1e-3, atol=1e-3)
    for folder, vocoder, alike in (("sounds", None, 0.9), ("vocoded", tiny_vocoder(), 0.99)):
        listed = [json.loads(line)["picture"] for line in Path(folder, "pictures.jsonl").read_text().splitlines()]
        assert listed[:2] == ["0.wav", "1.wav"]
        for i in range(2):
            sound, rate = soundfile.read(Path(folder, f"{i}.wav"), dtype="float32")
            assert (rate, len(sound)) == (16_000, 160 * FRAMES)
            # Griffin-Lim's phases are sensitive to the last digits of the mels.
            assert np.corrcoef(sound, to_sound(made[i], vocoder=vocoder).numpy())[0, 1] > alike


def test_a_changed_sound_is_encoded_again_and_the_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_sounds(tmp_path / "data", count=4, seconds=0.4)
    tiny_autoencoder(in_channels=1, out_channels=1).save_pretrained(tmp_path / "vae")
    output = str(tmp_path / "latents")
    encoding = ["encode", "--vae", str(tmp_path / "vae"), "--data", str(data), "--output", output, "--mel_frames", "8",
                "--shard_size", "2", "--num_workers", "0", "--detect_changes", "digest"]  # fmt: skip
    main(encoding)
    write_sounds(tmp_path / "other", count=3, seconds=0.3)
    (data / "3.wav").write_bytes((tmp_path / "other/2.wav").read_bytes())
    capsys.readouterr()
    main(encoding)
    assert "this process encoded 2 sounds in" in capsys.readouterr().out
    main(encoding)
    assert "this process encoded 0 sounds in" in capsys.readouterr().out


def test_what_is_not_for_sounds_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sounds(tmp_path / "data", count=2, seconds=0.2)
    tiny_autoencoder(in_channels=1, out_channels=1).save_pretrained("vae")
    tiny_autoencoder().save_pretrained("rgb")
    encoding = ["encode", "--data", "data", "--output", "latents", "--vae"]
    for words, message in (
        (
            [*encoding, "vae", "--mel_frames", "8", "--flip", "true"],
            "--flip is for images, but --mel_frames says that",
        ),
        ([*encoding, "vae", "--mel_frames", "9"], "--mel_frames is 9, which the model's factor 2 does not divide"),
        ([*encoding, "rgb", "--mel_frames", "8"], "--vae rgb is for images of 3 channels and factor 2; mels are"),
        ([*encoding, "vae"], "--data: the folder data holds no image, but 2 .wav (train, encode and evaluate read"),
        (["probe", "--vae", "vae", "--data", "data", "--output", "probe"], "(train, encode and evaluate read sounds"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        told = [line for line in capsys.readouterr().err.splitlines() if "error" in line or message in line]
        assert message in told[-1], told
    main([*encoding, "vae", "--mel_frames", "8", "--num_workers", "0"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["decode", "--vae", "vae", "--latents", "latents", "--output", "decoded", "--format", "png"])
    assert "--format is png, but latents holds latents of sounds; take wav, or npy" in capsys.readouterr().err
