"""The libraries of the extra `audio`, imported when a sound is first asked for."""

from __future__ import annotations

import importlib
from types import ModuleType


def torchaudio() -> ModuleType:
    """Return torchaudio, which resamples and knows mel filters and Griffin-Lim.

    Raises:
        ValueError: It isn't installed, or not for this version of torch.
    """
    return _imported("torchaudio.functional", "torchaudio")


def soundfile() -> ModuleType:
    """Return soundfile, which reads and writes files of sound.

    Raises:
        ValueError: It isn't installed.
    """
    return _imported("soundfile", "soundfile")


def _imported(module: str, name: str) -> ModuleType:
    try:
        importlib.import_module(module)
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library that it loads is missing or of another version
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"sounds need {name} ({line}): pip install 'ldm-vae[audio]'") from None
