"""Defects planted on real photographs lie where their masks say, and a tiny model of normal pictures finds them."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.commands.score import ScoreOptions
from ldm_vae.exporting.export import export
from ldm_vae.scoring.score import score
from ldm_vae.training.loop import train
from tests.launching import SCRIPTS
from tests.tiny import tiny_config

SIDE = 32
PHOTOGRAPH = Path(importlib.util.find_spec("skimage").origin).parent / "data" / "brick.png"  # type: ignore


@pytest.fixture(scope="module")
def defects() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("planted_defects")


@pytest.mark.parametrize("kind", ["scratch", "blot", "patch"])
def test_a_defect_lies_where_its_mask_says_and_is_the_seeds(kind: str, defects: ModuleType) -> None:
    assert set(defects.KINDS) == {"scratch", "blot", "patch"}
    with Image.open(PHOTOGRAPH) as opened:
        picture = opened.resize((64, 64)).convert("RGB")
    pixels = np.asarray(picture, dtype=int)
    seen = []
    for number in range(20):
        planted, mask = defects.plant(picture, kind, number=number)
        again, _ = defects.plant(picture, kind, number=number)
        assert planted.tobytes() == again.tobytes()
        changed, inside = np.abs(np.asarray(planted, dtype=int) - pixels).max(axis=-1), np.asarray(mask) > 0
        assert 0.002 < inside.mean() < 0.15
        assert changed[inside].mean() > 8 * changed[~inside].mean()
        assert changed[inside].mean() > (5 if kind == "patch" else 30)
        seen.append(planted.tobytes())
    assert len(set(seen)) == 20


@pytest.fixture(scope="module")
def bricks(tmp_path_factory: pytest.TempPathFactory, defects: ModuleType) -> Path:
    """Tiles of a photograph of bricks: above to train on, then for thresholds, and below to plant defects on."""
    folder = tmp_path_factory.mktemp("bricks")
    with Image.open(PHOTOGRAPH) as opened:
        wall = opened.convert("L").resize((384, 384), Image.Resampling.LANCZOS)
    for name in ("train", "kept", "normal"):
        (folder / name).mkdir()
    for top in range(0, wall.height, SIDE):
        for left in range(0, wall.width, SIDE):
            name = "train" if top < 224 else "kept" if top < 288 else "normal"
            wall.crop((left, top, left + SIDE, top + SIDE)).save(folder / name / f"{top:03d}-{left:03d}.png")
    return folder


def test_defects_planted_on_a_photograph_of_bricks_are_found(
    bricks: Path, defects: ModuleType, tmp_path: Path
) -> None:
    defects.plant_all(bricks / "normal", tmp_path / "data", tmp_path / "masks", resolution=SIDE, seed=0, mode="L")
    train(
        tiny_config(
            output_dir=tmp_path / "run",
            model={"in_channels": 1, "block_out_channels": [16, 16, 16], "init": "quiet"},
            data={"train": str(bricks / "train"), "resolution": SIDE},
            loss={"likelihood": "gaussian", "beta": 1.0, "logvar_init": -4.0, "disc_weight": 0.0},
            train={"max_train_steps": 80, "batch_size": 8, "learning_rate": 3e-3, "log_steps": 80,
                   "validation_steps": 80, "checkpointing_steps": 80, "adam_beta1": 0.9, "adam_beta2": 0.99},
        )
    )  # fmt: skip
    export(ExportOptions(run=str(tmp_path / "run"), output=str(tmp_path / "vae"), num_workers=0, num_images=16))
    summary = score(
        ScoreOptions(
            vae=str(tmp_path / "vae"), data=str(tmp_path / "data"), normal=str(bricks / "kept"), resolution=SIDE,
            output=str(tmp_path / "scores"), num_workers=0, num_maps=1000, num_pictures=0, batch_size=32,
            perceptual="none", report=False,
        )
    )  # fmt: skip
    found = {name: result.detection for name, result in summary.results.items()}
    assert all(detection is not None for detection in found.values())
    assert found["pixel_peak"].auroc > 0.75  # type: ignore[union-attr]
    assert found["pixel"].auroc > 0.7  # type: ignore[union-attr]
    assert found["negative_elbo"].auroc > 0.7  # type: ignore[union-attr]
    rows = dict(
        re.findall(r"^\| ([a-z_ ]+?) +\| ([0-9.]+) ", defects.measure(tmp_path / "scores", tmp_path / "masks"), re.M)
    )
    assert float(rows["pixel_peak"]) == pytest.approx(found["pixel_peak"].auroc, abs=6e-4)  # type: ignore[union-attr]
    assert float(rows["pixels of the pixel map"]) > 0.7
