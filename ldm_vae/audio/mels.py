"""Mel spectrograms in AudioLDM's format, and sounds made of them again.

Values are those of the training code that AudioLDM's authors published (Liu et al. 2023, "AudioLDM: Text-to-Audio
Generation with Latent Diffusion Models"), which are HiFi-GAN's (Kong et al. 2020): sounds of one channel at 16 kHz and
with a peak of 0.5; magnitudes of an STFT of 1,024 samples every 160; 64 mel filters from 0 to 8,000 Hz on Slaney's
scale, each of area 1; the natural logarithm, from 1e-5 on. Channels are mixed to one; that code takes the first.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.audio.library import audio_utils
from ldm_vae.config.data import MEL_BINS

SAMPLE_RATE = 16_000
HOP = 160
"""Samples of a frame: 10 ms."""
WINDOW = 1024
MAX_HERTZ = 8000.0
LEAST_MAGNITUDE = 1e-5
PEAK = 0.5
MEL_RANGE = (math.log(LEAST_MAGNITUDE), 2.0)
"""Where the values lie: silence is the first exactly, and sounds with a peak of 0.5 seldom come near the second."""

_MARGIN = (WINDOW - HOP) // 2
_GRIFFIN_LIM_ITERATIONS = 64
_GRIFFIN_LIM_MOMENTUM = 0.99


def log_mels(sound: Tensor) -> Tensor:
    """Return the logarithm of a sound's mel spectrogram, [1, T, 64]: a frame a row, low frequencies first.

    Args:
        sound: [160·T], float32, as `levelled` gives it.
    """
    padded = F.pad(sound[None], (_MARGIN, _MARGIN), mode="reflect")
    spectrum = torch.stft(
        padded, WINDOW, hop_length=HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True
    )
    magnitudes = spectrum.abs().transpose(1, 2)  # [1, T, 513]
    return torch.log((magnitudes @ _filters()).clamp(min=LEAST_MAGNITUDE))


def mels_of(sound: Tensor, *, frames: int) -> Tensor:
    """Return the mels [1, frames, 64] of a sound [N], levelled, with silence behind it where it is shorter.

    Args:
        sound: At 16 kHz, float32, of at most 160·frames samples.
        frames: From 4 on.
    """
    return log_mels(F.pad(levelled(sound), (0, HOP * frames - len(sound))))


def levelled(sound: Tensor) -> Tensor:
    """Return a sound [N] about zero, with a peak of 0.5; silence stays silent."""
    centred = sound - sound.mean()
    return centred * (PEAK / (centred.abs().amax() + 1e-8))


def griffin_lim(mels: Tensor) -> Tensor:
    """Return a sound [160·T], float32, that has about such mels: without a vocoder, and sounding like it.

    The spectrogram is the one of least squares among those without negative values that have these mels; its phases
    are found by Griffin-Lim (1984) with momentum (Perraudin et al. 2013), from the same start whenever it is called.

    Args:
        mels: [1, T, 64], as `log_mels` gives them.
    """
    filters = _filters()
    wanted = mels[0].float().exp()  # [T, 64]
    magnitudes = (wanted @ torch.linalg.pinv(filters)).clamp(min=0)
    step = 1 / torch.linalg.matrix_norm(filters, ord=2) ** 2
    for _ in range(200):  # projected gradient
        magnitudes = (magnitudes - step * ((magnitudes @ filters - wanted) @ filters.T)).clamp_(min=0)
    sound = _with_phases(magnitudes.T)
    # Its frames have their middles at multiples of 160, and ours half of that later.
    return F.pad(sound, (HOP // 2, HOP // 2))


def _with_phases(magnitudes: Tensor) -> Tensor:
    """Return a sound [160·(T - 1)] whose spectrum [513, T] has about these magnitudes."""
    window = torch.hann_window(WINDOW)
    turns = torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(0))
    phases, before = torch.polar(torch.ones_like(turns), 2 * math.pi * turns), torch.zeros(())
    for _ in range(_GRIFFIN_LIM_ITERATIONS):
        sound = torch.istft(magnitudes * phases, WINDOW, HOP, window=window)
        spectrum = torch.stft(sound, WINDOW, HOP, window=window, return_complex=True)
        phases = torch.sgn(spectrum + _GRIFFIN_LIM_MOMENTUM * (spectrum - before))
        before = spectrum
    return torch.istft(magnitudes * phases, WINDOW, HOP, window=window)


@functools.cache
def _filters() -> Tensor:
    """Return the filters, [513, 64]."""
    filters = audio_utils().mel_filter_bank(
        WINDOW // 2 + 1, MEL_BINS, 0.0, MAX_HERTZ, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters).float()
