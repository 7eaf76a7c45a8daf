"""The libraries of the extra `audio`, imported when a sound is first asked for."""

from __future__ import annotations

import importlib
from types import ModuleType


def audio_utils() -> ModuleType:
    """Return transformers' `audio_utils`, which knows mel filters.

    Raises:
        ValueError: transformers isn't installed.
    """
    return _imported("transformers.audio_utils", name="transformers")


def soxr() -> ModuleType:
    """Return soxr, which resamples.

    Raises:
        ValueError: It isn't installed.
    """
    return _imported("soxr", name="soxr")


def soundfile() -> ModuleType:
    """Return soundfile, which reads and writes files of sound.

    Raises:
        ValueError: It isn't installed.
    """
    return _imported("soundfile", name="soundfile")


def _imported(module: str, *, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that it loads is missing or of another version
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"sounds need {name} ({line}): pip install 'ldm-vae[audio]'") from None
