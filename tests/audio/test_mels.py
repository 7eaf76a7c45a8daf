"""Mels against another library's own, and against the published code's lines; sounds made of them again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.audio_utils import spectrogram, window_function

from ldm_vae.audio.mels import HOP, MEL_RANGE, PEAK, griffin_lim, levelled, log_mels, mels_of
from tests.audio.sounds import chirp


@pytest.fixture(scope="module")
def sound() -> torch.Tensor:
    return levelled(torch.from_numpy(chirp()))


def slaney_filters() -> np.ndarray:
    """Return 64 triangles over 513 frequencies, as the Auditory Toolbox (Slaney 1998) has them: [513, 64].

    There are 15 mels of 66.7 Hz up to 1 kHz, then 27 for each factor of 6.4; each triangle has the area 1.
    """
    last = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    mels = np.linspace(0, last, 66)
    corners = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    frequencies = np.linspace(0, 8000, 513)
    filters = [
        np.interp(frequencies, [low, peak, high], [0, 2 / (high - low), 0])
        for low, peak, high in zip(corners, corners[1:], corners[2:], strict=False)
    ]
    return np.stack(filters, axis=1)


def test_mels_are_those_of_transformers(sound: torch.Tensor) -> None:
    theirs = spectrogram(
        np.pad(sound.numpy(), (1024 - HOP) // 2, mode="reflect"),
        window_function(1024, "hann"),
        frame_length=1024,
        hop_length=HOP,
        power=1.0,
        center=False,
        mel_filters=slaney_filters(),
        mel_floor=1e-5,
    )
    ours = log_mels(sound)
    assert ours.shape == (1, 100, 64)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours[0], np.log(theirs).T, atol=1e-4)


def test_the_level_is_the_same_for_loud_and_quiet_sounds(sound: torch.Tensor) -> None:
    quiet = levelled(sound * 0.01 + 0.3)
    assert quiet.abs().max() == pytest.approx(PEAK, rel=1e-4)
    torch.testing.assert_close(quiet, sound, atol=1e-4, rtol=0)
    assert not levelled(torch.zeros(500)).any()


def test_values_lie_in_their_range_and_silence_fills_up_what_is_missing(sound: torch.Tensor) -> None:
    full_scale = torch.sin(torch.arange(16_000) * 0.4)
    for one in (sound, full_scale):
        mels = mels_of(one, frames=120)
        assert mels.shape == (1, 120, 64)
        assert MEL_RANGE[0] <= mels.min() < mels.max() < MEL_RANGE[1]
        assert (mels[0, 104:] == MEL_RANGE[0]).all()  # the last frames that reach into the sound begin before it ends
        assert (mels[0, 90:95].amax(dim=1) > MEL_RANGE[0]).all()


def test_griffin_lim_gives_a_sound_with_these_mels_always_the_same(sound: torch.Tensor) -> None:
    mels = log_mels(sound)
    before = torch.random.get_rng_state()
    again = griffin_lim(mels)
    assert again.shape == sound.shape
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(griffin_lim(mels), again)
    error = (log_mels(again) - mels).abs().mean()
    assert error < 0.25
    for half_a_frame in (-HOP // 2, HOP // 2):  # it is where it was
        assert (log_mels(again.roll(half_a_frame)) - mels).abs().mean() > 1.05 * error
