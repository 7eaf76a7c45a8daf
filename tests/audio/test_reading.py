"""Sounds as they lie on disks: rates, channels, formats, parts, and what is no sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ldm_vae.audio.collection import open_sounds
from ldm_vae.audio.reading import UnreadableSound, read_part
from tests.audio.sounds import chirp, write_sounds


def first(spare: int) -> int:
    return 0


def read(path: Path, *, frames: int = 100) -> torch.Tensor:
    return read_part(path, frames=frames, start_of=first)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_formats_give_the_samples(tmp_path: Path, name: str) -> None:
    sound = chirp()
    soundfile.write(tmp_path / name, sound, 16_000)
    found = read(tmp_path / name).numpy()
    lossy = name.endswith((".ogg", ".mp3"))
    assert len(found) == 16_000
    assert np.abs(found - sound).mean() < (0.05 if lossy else 1e-4)


@pytest.mark.parametrize("rate", [44_100, 8000, 44_101])
def test_channels_are_mixed_and_rates_changed(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate) / rate
    left, right = np.sin(2 * np.pi * 440 * time), np.zeros(rate)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), rate, subtype="FLOAT")
    found = read(tmp_path / "a.wav")
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(16_000, dtype=torch.float64) / 16_000)
    assert found.shape == (16_000,)
    torch.testing.assert_close(found[500:-500].double(), expected[500:-500], atol=2e-3, rtol=0)


def test_a_part_is_read_from_where_it_is_asked_for(tmp_path: Path) -> None:
    sound = chirp(2.0)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    asked = []

    def start_of(spare: int) -> int:
        asked.append(spare)
        return spare // 2

    part = read_part(tmp_path / "a.wav", frames=50, start_of=start_of)
    assert asked == [32_000 - 8000]
    np.testing.assert_array_equal(part, sound[12_000:20_000])
    short = read_part(tmp_path / "a.wav", frames=400, start_of=start_of)
    np.testing.assert_array_equal(short, sound)
    assert len(asked) == 1


def test_what_is_no_sound_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 16_000, subtype="FLOAT")
    reasons = {
        "empty": "", "text": "", "folder": "it is a folder", "missing": "No such file or directory",
        "none": "it holds no samples", "nan": "it holds samples that are not finite",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(UnreadableSound, match=rf"the sound .*{name}.wav can't be read: .") as error:
            read(tmp_path / f"{name}.wav")
        assert reason in error.value.reason
        assert "\n" not in str(error.value)


def test_a_folder_of_sounds_is_sorted_and_tells_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sounds(tmp_path / "b", count=2)
    write_sounds(tmp_path / "a", count=1)
    (tmp_path / "cover.png").write_bytes(b"")
    (tmp_path / ".hidden.wav").write_bytes(b"")
    sounds = open_sounds(str(tmp_path))
    assert list(sounds.data_names()) == ["a/0.wav", "b/0.wav", "b/1.wav"]
    assert sounds.read(2, frames=100, start_of=first).shape == (16_000,)
    told = capsys.readouterr().err
    assert "1 .png" in told
    assert "1 hidden file" in told
    assert list(open_sounds(str(tmp_path / "b" / "*.wav")).data_names()) == ["0.wav", "1.wav"]


def test_folders_that_are_splits_are_splits(tmp_path: Path) -> None:
    write_sounds(tmp_path / "train", count=2)
    write_sounds(tmp_path / "val", count=1)
    assert list(open_sounds(str(tmp_path)).data_names()) == ["train/0.wav", "train/1.wav"]
    assert list(open_sounds(str(tmp_path), held_out=True).data_names()) == ["val/0.wav"]
    assert len(open_sounds(str(tmp_path), split="train[:1]")) == 1


def test_no_sound_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data.train: .* names no sound; give a folder or files of sound"):
        open_sounds(str(tmp_path), field="data.train")
    with pytest.raises(ValueError, match=r"^data: .*missing.* names no sound"):
        open_sounds(str(tmp_path / "missing"))
