"""Sounds as images of one channel: mel spectrograms in AudioLDM's format, and back. It needs the extra `audio`.

>>> from ldm_vae.audio import read_mels, to_sound
>>> mels = read_mels("sound.wav", frames=1024)
>>> mels.shape
torch.Size([1, 1024, 64])
>>> to_sound(mels).shape
torch.Size([163840])
"""

from ldm_vae.audio.mels import HOP, MEL_RANGE, SAMPLE_RATE
from ldm_vae.audio.reading import read_mels
from ldm_vae.audio.vocoding import load_vocoder, to_sound

__all__ = ["HOP", "MEL_RANGE", "SAMPLE_RATE", "load_vocoder", "read_mels", "to_sound"]
