"""docs/objective.md names every column that a run writes into metrics.jsonl."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ldm_vae.training.loop import train
from tests.tiny import tiny_config

PAGE = Path(__file__).parents[2] / "docs" / "objective.md"


def test_every_column_is_named(pictures: Path, tmp_path: Path) -> None:
    config = tiny_config(
        output_dir=tmp_path / "run",
        data={"train": str(pictures), "validation": str(pictures)},
        loss={
            "perceptual": "efficientnet_lite0",
            "learn_logvar": True,
            "equivariance_weight": 0.5,
            "consistency_weight": 0.1,
            "spectrum_weight": 0.01,
        },
        train={"max_train_steps": 4},
    )
    train(config)
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    columns = {name for line in written for name in line}
    named = set(re.findall(r"^\| `([\w/]+)` \|", PAGE.read_text(), re.MULTILINE)) - {"nonfinite/NAME"}
    assert columns == named
