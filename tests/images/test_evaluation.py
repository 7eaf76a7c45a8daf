"""Batches to measure on: each picture once, in order, and what is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationBatch, EvaluationImages, evaluation_batches
from ldm_vae.images.transforms import to_image
from tests.pictures import encoded, smooth_picture, write_grey


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_batches(photos: Path, num_workers: int) -> None:
    dataset = EvaluationImages(open_collection(str(photos)), channels=3, resolution=20)
    batches = list(evaluation_batches(dataset, indices=[9, 3, 0, 4, 3, 2, 5], batch_size=3, num_workers=num_workers))
    assert [batch.indices for batch in batches] == [[9, 0], [2], [5]]
    assert [batch.names for batch in batches] == [["9.png", "0.png"], ["2.png"], ["5.png"]]
    assert [[skipped.index for skipped in batch.skipped] for batch in batches] == [[3], [4, 3], []]
    assert batches[0].images is not None
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    expected = Image.open(photos / "9.png").resize((20, 20), Image.Resampling.BICUBIC, box=(6, 0, 46, 40))
    assert to_image(batches[0].images[0]).tobytes() == expected.tobytes()
    assert list(evaluation_batches(dataset, indices=[4], batch_size=3)) == [
        EvaluationBatch(indices=[], images=None, names=[], skipped=batches[1].skipped[:1])
    ]
    assert list(evaluation_batches(dataset, indices=[], batch_size=3, num_workers=num_workers)) == []


def test_whole_pictures_come_alone_cut_about_their_middle(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes((photos / "0.png").read_bytes())
    write_grey(tmp_path / "small.png", 5)
    picture = smooth_picture(48, 64)
    (tmp_path / "tall.jpg").write_bytes(encoded(picture, "JPEG", quality=95))
    dataset = EvaluationImages(open_collection(str(tmp_path)), channels=3, resolution=None, multiple_of=16)
    wide, small, tall = evaluation_batches(dataset, indices=range(3), batch_size=8)
    assert wide.images is not None
    assert to_image(wide.images[0]).tobytes() == Image.open(photos / "0.png").crop((2, 4, 50, 36)).tobytes()
    assert tall.images is not None
    assert tall.images.shape == (1, 3, 64, 48)
    assert small.skipped[0].reason == "its 12x8 pixels are fewer than the model's factor 16 a side"
