"""Buckets: an update's shape and images, against plain counting, however the batch is cut and wherever it begins."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae.images import buckets as buckets_module
from ldm_vae.images.batches import training_batches
from ldm_vae.images.buckets import Buckets, nearest_bucket
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages, evaluation_batches
from ldm_vae.images.headers import picture_sizes
from ldm_vae.images.training import Augmentation, TrainingBatch, TrainingImages
from ldm_vae.images.transforms import crop_box, to_tensor
from ldm_vae.system.randomness import sample_index, sample_rng
from tests.pictures import picture

SIZES = [(16, 16), (24, 8), (8, 24)]
BATCH = 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six squares, four wide pictures, one tall; the last wide one is cut off behind its header."""
    folder = tmp_path_factory.mktemp("photos")
    shapes = [(20, 20)] * 6 + [(40, 16)] * 4 + [(12, 40)]
    for number, size in enumerate(shapes):
        picture(number, size=size).save(folder / f"{number:02d}.png")
    whole = (folder / "09.png").read_bytes()
    (folder / "09.png").write_bytes(whole[:200])
    return folder


MEMBERS = [np.arange(6), np.arange(6, 10), np.arange(10, 11)]


def make(members: list[np.ndarray] | None = None, *, seed: int = 3) -> Buckets:
    return Buckets(SIZES, members=MEMBERS if members is None else members, seed=seed, batch_size=BATCH)


def images_of(photos: Path, buckets: Buckets | None = None) -> TrainingImages:
    return TrainingImages(
        open_collection(str(photos)),
        Augmentation(
            seed=3, channels=3, resolution=16, latent_channels=2, spatial_factor=8, buckets=buckets or make()
        ),
    )


def test_pictures_belong_to_the_shape_of_the_nearest_aspect(photos: Path) -> None:
    sizes = list(picture_sizes(open_collection(str(photos)), range(11), channels=3, num_workers=0, timeout_seconds=9))
    chosen = [nearest_bucket(size or (1, 1), sizes=SIZES) for size in sizes]
    assert chosen == [SIZES[0]] * 6 + [SIZES[1]] * 4 + [SIZES[2]]


def test_an_updates_shape_and_images_are_those_of_plain_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across the borders of what is drawn at once, and asked for in any order."""
    monkeypatch.setattr(buckets_module, "_CHUNK", 7)
    shares = np.cumsum([len(images) for images in MEMBERS])
    drawn = [n for c in range(9) for n in sample_rng(c, seed=3, stream="bucket").integers(11, size=7)]
    seen: Counter[int] = Counter()
    expected = []
    for draw in drawn:
        bucket = next(number for number, end in enumerate(shares) if draw < end)
        for place in range(BATCH):
            expected.append((SIZES[bucket], MEMBERS[bucket].tolist(), seen[bucket] * BATCH + place))
        seen[bucket] += 1
    order = [*range(len(expected))]
    for ks in (order, order[::-1], np.random.default_rng(0).permutation(order)):
        fresh = make()
        for k in map(int, ks):
            images, place = fresh.due(k) or ([], 0)
            assert (fresh.size_of(k), [*images], place) == expected[k]


def test_a_bucket_is_as_frequent_as_its_images_and_shows_each_equally_often() -> None:
    buckets = make()
    counts: Counter[int] = Counter()
    for k in range(1000 * BATCH):
        images, place = buckets.due(k) or ([], 0)
        counts[int(images[sample_index(place, num_samples=len(images), seed=3)])] += 1
    for images in MEMBERS:
        share = sum(counts[image] for image in images.tolist()) / (1000 * BATCH)
        assert share == pytest.approx(len(images) / 11, abs=0.05)
        assert max(counts[i] for i in images.tolist()) - min(counts[i] for i in images.tolist()) <= 1


def test_empty_buckets_are_never_drawn() -> None:
    buckets = make([np.arange(5), np.arange(0), np.arange(5, 9)])
    assert {buckets.size_of(k) for k in range(400)} == {SIZES[0], SIZES[2]}


@pytest.mark.parametrize(("processes", "size"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)])
def test_batches_hold_one_shape_however_they_are_cut(photos: Path, processes: int, size: int) -> None:
    dataset = images_of(photos)
    first = 24  # from here on all shapes come in twelve updates
    whole = list(islice(training_batches(dataset, start_step=first, batch_size=BATCH, micro_batch_size=BATCH), 12))
    assert {batch.images.shape for batch in whole} == {(4, 3, 16, 16), (4, 3, 8, 24), (4, 3, 24, 8)}
    for batch in whole:
        assert batch.noise.shape == (4, 2, batch.images.shape[2] // 8, batch.images.shape[3] // 8)
    for start in (0, 5):

        def batches(r: int, start: int = start) -> list[TrainingBatch]:
            found = training_batches(
                images_of(photos), start_step=first + start, batch_size=BATCH, micro_batch_size=size,
                process_index=r, num_processes=processes,
            )  # fmt: skip
            return list(islice(found, (12 - start) * BATCH // (size * processes)))

        cut = [batch for turn in zip(*map(batches, range(processes)), strict=True) for batch in turn]
        per_step = BATCH // size
        for step, expected in enumerate(whole[start:]):
            mine = cut[step * per_step : (step + 1) * per_step]
            assert torch.equal(torch.cat([batch.images for batch in mine]), expected.images)
            assert torch.equal(torch.cat([batch.noise for batch in mine]), expected.noise)


def test_what_cannot_be_read_is_replaced_within_its_bucket(photos: Path) -> None:
    """By the bucket's first image, since it is the bucket's last."""
    dataset = images_of(photos)
    crops = [dataset[k] for k in range(80)]
    replaced = [(k, sample) for k, sample in enumerate(crops) if sample.skipped]
    assert {sample.skipped[0].name for _, sample in replaced} == {"09.png"}
    for k, sample in replaced:
        rng = sample_rng(k, seed=3, stream="crop")
        box = crop_box((40, 16), resolution=(24, 8), crop="random", rng=rng)
        plain = to_tensor(Image.open(photos / "06.png").resize((24, 8), Image.Resampling.BICUBIC, box=box))
        assert torch.equal(sample.image, plain) or torch.equal(sample.image, plain.flip(-1))


def test_other_members_are_another_collection(photos: Path) -> None:
    names = [
        list(images_of(photos, buckets).data_names())
        for buckets in (make(), make([MEMBERS[0], MEMBERS[2], MEMBERS[1]]))
    ]
    assert names[0][:-1] == names[1][:-1] == [f"{number:02d}.png" for number in range(11)]
    assert names[0][-1] != names[1][-1]


def test_pictures_are_evaluated_in_their_nearest_shape(photos: Path) -> None:
    dataset = EvaluationImages(open_collection(str(photos)), channels=3, resolution=None, sizes=SIZES)
    batches = list(evaluation_batches(dataset, indices=range(11), batch_size=4))
    shapes = [tuple(batch.images.shape) for batch in batches if batch.images is not None]
    assert shapes == [(1, 3, 16, 16)] * 6 + [(1, 3, 8, 24)] * 3 + [(1, 3, 24, 8)]
    one = EvaluationImages(open_collection(str(photos)), channels=3, resolution=None, sizes=SIZES[1:2])
    first = next(evaluation_batches(one, indices=range(4), batch_size=4)).images
    assert first is not None
    box = crop_box((20, 20), resolution=(24, 8), crop="center")
    plain = Image.open(photos / "00.png").resize((24, 8), Image.Resampling.BICUBIC, box=box)
    assert torch.equal(first[0], to_tensor(plain))
