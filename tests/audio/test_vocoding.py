"""Mels to sounds by transformers' own vocoder, and what is refused as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from ldm_vae.audio.mels import griffin_lim, levelled, log_mels
from ldm_vae.audio.vocoding import load_vocoder, to_sound
from tests.audio.sounds import chirp


def tiny_vocoder(**fields: object) -> SpeechT5HifiGan:
    """Return AudioLDM's vocoder with a narrow network."""
    torch.manual_seed(0)
    audioldm = {
        "model_in_dim": 64, "sampling_rate": 16_000, "upsample_initial_channel": 64, "normalize_before": False,
        "upsample_rates": [5, 4, 2, 2, 2], "upsample_kernel_sizes": [16, 16, 8, 4, 4], "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
    }  # fmt: skip
    vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**audioldm | fields)).eval()
    for module in vocoder.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)  # its own are nearly silent
    return vocoder


def test_a_vocoder_makes_the_sound_where_there_is_one(tmp_path: Path) -> None:
    mels = log_mels(levelled(torch.from_numpy(chirp())))
    vocoder = tiny_vocoder()
    vocoder.save_pretrained(tmp_path / "pipeline" / "vocoder")
    with torch.no_grad():
        expected = vocoder(mels[0])[:16_000]  # the first of its layers adds some frames' worth at the end
    for source in (tmp_path / "pipeline", tmp_path / "pipeline" / "vocoder"):
        sound = to_sound(mels, vocoder=load_vocoder(source))
        torch.testing.assert_close(sound, expected)
        assert sound.shape == (16_000,)
    torch.testing.assert_close(to_sound(mels), griffin_lim(mels).clamp(-1, 1))


def test_other_vocoders_are_refused_in_one_line(tmp_path: Path) -> None:
    tiny_vocoder(model_in_dim=80).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"^vocoder: .* of 16000 Hz, 80 mels and 160 samples a frame, but AudioLDM's"):
        load_vocoder(tmp_path / "other")
    with pytest.raises(ValueError, match=r"^vocoder: .*nowhere is no SpeechT5HifiGan: ") as error:
        load_vocoder(tmp_path / "nowhere")
    assert "\n" not in str(error.value)
