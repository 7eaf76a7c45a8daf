"""docs/objective.md names every column that a run writes into metrics.jsonl."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from ldm_vae.training.loop import train
from tests.tiny import tiny_config, tiny_family

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
            "disc_lecam_weight": 0.001,
            "disc_r1_weight": 0.1,
            "alignment": "efficientnet_lite0",
        },
        train={"max_train_steps": 4},
    )
    tiny_family(family="tiny", block_out_channels=[8, 8]).model.save_pretrained(tmp_path / "teacher")
    with_codes = replace(
        config, output_dir=str(tmp_path / "codes"), model=replace(config.model, family="vq", codebook_size=16)
    )
    columns = set()
    student = replace(config.model, family="tiny", teacher=str(tmp_path / "teacher"), teach_encoder=True)
    loss = replace(config.loss, alignment="none", spectrum_weight=0.0, learn_logvar=False, likelihood="laplace")
    taught = replace(config, output_dir=str(tmp_path / "taught"), model=student, loss=loss)
    for run in (config, with_codes, taught):
        train(run)
        assert not (Path(run.output_dir) / "report.html").exists()  # tiny runs ask for none
        lines = (Path(run.output_dir) / "metrics.jsonl").read_text().splitlines()
        columns |= {name for line in lines for name in json.loads(line)}
    named = set(re.findall(r"^\| `([\w/]+)` \|", PAGE.read_text(), re.MULTILINE)) - {"nonfinite/NAME"}
    assert columns == named
