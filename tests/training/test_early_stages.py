"""Early resolutions in runs that are made longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_vae.images import batches as batches_module
from ldm_vae.images.training import TrainingBatch, TrainingSample
from ldm_vae.training.loop import train
from tests.tiny import tiny_config
from tests.training.runs import metrics


def watched(collate: Callable[..., TrainingBatch], seen: list[tuple[int, int]]) -> Callable[..., TrainingBatch]:
    """Note the number and side of each batch's images."""

    def collated(samples: list[TrainingSample]) -> TrainingBatch:
        batch = collate(samples)
        seen.append((len(batch.images), batch.images.shape[-1]))
        return batch

    return collated


def test_longer_run_trains_at_full_size_from_where_it_was(tmp_path: Path, pictures: Path) -> None:
    """The images that a resumed run reads are those of its own stages."""
    data = {"train": str(pictures), "early_resolutions": [16], "early_fractions": [0.5]}
    seen: list[tuple[int, int]] = []

    def run(steps: int) -> None:
        config = tiny_config(
            output_dir=tmp_path / "run",
            data=data,
            train={"max_train_steps": steps, "resume_from_checkpoint": "latest", "checkpointing_steps": 1},
        )
        with pytest.MonkeyPatch.context() as patch:
            collate = "ldm_vae.images.batches.collate_training"
            patch.setattr(collate, watched(batches_module.collate_training, seen))
            train(config)

    run(4)
    run(8)
    assert [side for _, side in seen] == [16, 16, 32, 32] + [32] * 4
    lines = [line["step"] for line in metrics(tmp_path / "run")]
    assert lines == sorted(lines)
