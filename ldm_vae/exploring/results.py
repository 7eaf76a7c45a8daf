"""What exploring leaves beside pictures: explore.json, and the line that a command prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_vae.exploring.codec import Codec
from ldm_vae.images.guard import SkippedImage
from ldm_vae.system.files import write_whole
from ldm_vae.system.output_kinds import EXPLORATION
from ldm_vae.system.strict_json import dump_json
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable


@dataclass(kw_only=True)
class Exploration:
    """What was written."""

    output: Path
    told: str
    """What it is, and what was decided on the way."""
    skipped: list[SkippedImage] = field(default_factory=list)
    """Pictures that couldn't be read."""

    def __str__(self) -> str:
        """Return it in one line, or two."""
        return f"{self.output}: {self.told}{told_skipped(self.skipped)}"


def told_skipped(skipped: Sequence[SkippedImage]) -> str:
    """Return a line on pictures that couldn't be read, the line's end before it; nothing where there are none."""
    if not skipped:
        return ""
    first = f"{printable(skipped[0].name)} ({printable(skipped[0].reason)})"
    return f"\n{counted(len(skipped), 'picture')} skipped; the first: {first}"


def write_record(
    folder: Path, command: str, record: dict[str, Any], *, settings: dict[str, Any], codec: Codec
) -> None:
    """Write explore.json: what was done, what was found, by which autoencoder and settings."""
    content = {
        "explore": command,
        **record,
        "autoencoder": {"class": codec.family.class_name(), "fingerprint": codec.fingerprint.whole},
        "settings": settings,
    }
    write_whole(folder / EXPLORATION.mark, (dump_json(content, indent=1) + "\n").encode())
