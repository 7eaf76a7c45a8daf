"""`score` with small settings, and what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldm_vae.config.commands.score import ScoreOptions
from ldm_vae.scoring.score import score
from ldm_vae.scoring.summary import ScoreSummary

SIDE = 32


def run(place: Path, output: Path, **options: object) -> ScoreSummary:
    given: dict[str, Any] = {
        "vae": str(place / "vae"), "data": str(place / "data"), "normal": str(place / "good"), "num_workers": 0,
        "perceptual": "none", "resolution": SIDE,
    }  # fmt: skip
    return score(ScoreOptions(output=str(output), **(given | options)))


def lines_of(output: Path, name: str = "scores.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / name).read_text().splitlines()]
