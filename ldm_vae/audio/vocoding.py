"""From mels to sounds: by a vocoder of transformers where there is one, else by Griffin-Lim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_vae.audio.mels import HOP, SAMPLE_RATE, griffin_lim
from ldm_vae.config.data import MEL_BINS
from ldm_vae.config.rules import mark, within
from ldm_vae.system.text import first_line

_HIFIGAN = "SpeechT5HifiGan"


def load_vocoder(source: str | Path, *, field: str = "vocoder") -> nn.Module:
    """Load a vocoder of transformers' class SpeechT5HifiGan, as AudioLDM's pipelines hold, in eval mode and float32.

    Args:
        source: Its folder, a pipeline's folder with a `vocoder` in it, or a hub id.
        field: The option's name, for the error.

    Raises:
        FieldError: There is none, or it is for other mels than AudioLDM's.
    """
    try:
        from transformers import SpeechT5HifiGan
    except ImportError:
        raise within(mark(field), "vocoders need transformers: pip install 'ldm-vae[audio]'") from None
    folder = Path(source).expanduser()
    name = str(folder) if folder.exists() else str(source)
    try:
        try:
            vocoder = SpeechT5HifiGan.from_pretrained(name)
        except OSError as error:
            vocoder = _of_pipeline(name, SpeechT5HifiGan, otherwise=error)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise within(mark(field), f"{source} is no {_HIFIGAN}: {first_line(error)}") from None
    _check(vocoder.config, source=source, field=field)
    return vocoder.float().eval().requires_grad_(False)


def _of_pipeline(name: str, vocoder_class: Any, *, otherwise: OSError) -> nn.Module:
    """Load the vocoder of a pipeline; raise `otherwise` where there is none."""
    try:
        return vocoder_class.from_pretrained(name, subfolder="vocoder")
    except OSError:
        raise otherwise from None


def _check(config: Any, *, source: str | Path, field: str) -> None:
    hop = 1
    for rate in config.upsample_rates:
        hop *= rate
    found, wanted = (config.sampling_rate, config.model_in_dim, hop), (SAMPLE_RATE, MEL_BINS, HOP)
    if found != wanted:
        named = "{} Hz, {} mels and {} samples a frame".format
        raise within(mark(field), f"{source} is for sounds of {named(*found)}, but AudioLDM's have {named(*wanted)}")


@torch.no_grad()
def to_sound(mels: Tensor, *, vocoder: nn.Module | None = None) -> Tensor:
    """Return the sound [160·T], float32 on the CPU in [-1, 1], that has these mels.

    Args:
        mels: [1, T, 64], as `log_mels` gives them or an autoencoder reconstructs them.
        vocoder: As `load_vocoder` gives it; None: Griffin-Lim, which needs no weights.
    """
    if vocoder is None:
        sound = griffin_lim(mels.cpu())
    else:
        parameter = next(vocoder.parameters())
        sound = vocoder(mels[0].to(parameter.device, parameter.dtype)).float().cpu()[: HOP * mels.shape[1]]
    return sound.clamp(-1, 1)
