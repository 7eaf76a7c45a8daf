"""Draws for interventions: functions of (seed, k) and of (seed, update), whoever asks."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from ldm_vae.images.batches import training_batches
from ldm_vae.images.collection import open_collection
from ldm_vae.images.draws import DrawRules
from ldm_vae.images.streaming import StreamingImages, open_stream
from ldm_vae.images.training import Augmentation, TrainingBatch, TrainingImages
from tests.pictures import picture

RULES = DrawRules(
    seed=3,
    batch_size=4,
    eq_probability=0.5,
    pair_every=2,
    scales=(0.25, 0.5, 0.75),
    rotations=(90, 180, 270),
    flips=True,
    latent_noise="additive",
    low_pass=(0, 8, 12),
)
AUGMENTATION = Augmentation(seed=3, channels=3, resolution=16, latent_channels=4, spatial_factor=8, draws=RULES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        picture(i).save(folder / f"{i}.png")
    return folder


def rows(batches: list[TrainingBatch], name: str) -> list[torch.Tensor]:
    return [row for batch in batches for row in batch.draws[name]]


@pytest.mark.parametrize(("processes", "size"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_draws_are_those_of_one_process_and_one_batch(photos: Path, processes: int, size: int) -> None:
    images = TrainingImages(open_collection(str(photos)), AUGMENTATION)
    whole = list(islice(training_batches(images, start_step=0, batch_size=4, micro_batch_size=4), 6))
    of_process = [
        list(
            islice(
                training_batches(
                    images,
                    start_step=0,
                    batch_size=4,
                    micro_batch_size=size,
                    process_index=r,
                    num_processes=processes,
                ),
                24 // (size * processes),
            )
        )
        for r in range(processes)
    ]
    cut = [batch for turn in zip(*of_process, strict=True) for batch in turn]
    for name in ("rotation", "mirror", "noise_strength", "latent_noise", "low_pass"):
        for one, other in zip(rows(whole, name), rows(cut, name), strict=True):
            assert torch.equal(one, other)
    for index, batch in enumerate(cut):
        step = index * size // 4
        for name in ("eq_scale", "pair_scale"):
            assert batch.draws.get(name) == whole[step].draws.get(name)
    assert [("pair_scale" in batch.draws) for batch in whole] == [True, False] * 3
    later = next(training_batches(images, start_step=4, batch_size=4, micro_batch_size=4))
    assert {name: str(value) for name, value in later.draws.items()} == {
        name: str(value) for name, value in whole[4].draws.items()
    }


def test_processes_of_a_stream_have_the_same_scale_in_each_update(photos: Path) -> None:
    images = StreamingImages(open_stream(str(photos)), AUGMENTATION)
    per_process = [
        list(
            islice(
                training_batches(
                    images, start_step=0, batch_size=4, micro_batch_size=2, process_index=r, num_processes=2
                ),
                6,
            )
        )
        for r in range(2)
    ]
    for step in range(6):
        for batches in per_process:
            expected = RULES.of_step(step)
            assert {name: value for name, value in batches[step].draws.items() if name in expected} == expected


def test_draws_are_as_frequent_as_they_are_to_be() -> None:
    samples = [RULES.of_image(k, latent_shape=(1, 1, 1)) for k in range(3000)]
    for name, numbers in (("rotation", {1, 2, 3}), ("mirror", {True, False}), ("low_pass", {0, 8, 12})):
        counts = Counter(sample[name].item() for sample in samples)
        assert counts.keys() == numbers
        assert all(abs(count / 3000 - 1 / len(numbers)) < 0.04 for count in counts.values())
    steps = [RULES.of_step(step) for step in range(3000)]
    scales = Counter(step.get("eq_scale") for step in steps)
    assert abs(scales[None] / 3000 - 0.5) < 0.04
    assert all(abs(scales[scale] / 3000 - 0.5 / 3) < 0.04 for scale in (0.25, 0.5, 0.75))
    seldom = DrawRules(seed=0, batch_size=4, eq_probability=0.1, scales=(0.5,))
    assert abs(sum("eq_scale" in seldom.of_step(step) for step in range(3000)) / 3000 - 0.1) < 0.03


def test_nothing_is_drawn_where_nothing_asks_for_it() -> None:
    rules = DrawRules(seed=0, batch_size=4)
    assert rules.of_image(1, latent_shape=(4, 2, 2)) == rules.of_step(1) == {}
    assert rules.rehearsed() == [{}]
